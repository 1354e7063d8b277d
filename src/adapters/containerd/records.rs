//! What `drover-runc` has restored on this node: its records, one for each container that it knows.

use std::io;

use super::Containerd;
use crate::{
    ports::{PortError, PortResult},
    runc::Record,
};

impl Containerd {
    /// What `drover-runc` has restored a container from, and how; none for a container that it has handed to runc as it was.
    pub(super) fn recorded(&self, id: &str) -> PortResult<Option<Record>> {
        match std::fs::read(self.records.join(id)) {
            Ok(bytes) => {
                let record: Record = serde_json::from_slice(&bytes)
                    .map_err(|error| PortError::permanent(format!("drover-runc's record of container {id} cannot be parsed: {error}")))?;
                Ok(Some(record).filter(|record| !record.checkpoint.is_empty()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PortError::transient(format!("drover-runc's record of container {id} cannot be read: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runc::Pages;
    use std::path::Path;

    #[tokio::test]
    async fn a_record_names_the_checkpoint() {
        let records = tempfile::tempdir().unwrap();
        let containerd = Containerd::at(Path::new("/nonexistent")).with_records(records.path().to_owned());
        std::fs::write(records.path().join("one"), r#"{"pod": "u", "container": "c", "checkpoint": "127.0.0.1:5785/drover/00:c"}"#).unwrap();
        std::fs::write(records.path().join("bad"), "{").unwrap();
        let found = containerd.recorded("one").unwrap().unwrap();
        assert_eq!((found.checkpoint.as_str(), found.pages), ("127.0.0.1:5785/drover/00:c", Pages::Complete));
        std::fs::write(records.path().join("two"), r#"{"pod": "u", "container": "c", "checkpoint": "i", "pages": {"failed": "why"}}"#).unwrap();
        assert_eq!(containerd.recorded("two").unwrap().unwrap().pages, Pages::Failed("why".into()));
        assert_eq!(containerd.recorded("other"), Ok(None));
        assert!(containerd.recorded("bad").is_err());
    }
}
