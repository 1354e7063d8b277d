//! What `drover-runc` has restored on this node: its records, one for each container that it knows.

use std::io;

use super::Containerd;
use crate::{
    ports::{PortError, PortResult},
    runc::Record,
};

impl Containerd {
    /// The checkpoint image that `drover-runc` has restored a container from; none for a container that it has handed to runc as it was.
    pub(super) fn recorded(&self, id: &str) -> PortResult<Option<String>> {
        match std::fs::read(self.records.join(id)) {
            Ok(bytes) => {
                let record: Record = serde_json::from_slice(&bytes)
                    .map_err(|error| PortError::permanent(format!("drover-runc's record of container {id} cannot be parsed: {error}")))?;
                Ok(Some(record.checkpoint).filter(|image| !image.is_empty()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PortError::transient(format!("drover-runc's record of container {id} cannot be read: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[tokio::test]
    async fn a_record_names_the_checkpoint() {
        let records = tempfile::tempdir().unwrap();
        let containerd = Containerd::at(Path::new("/nonexistent")).with_records(records.path().to_owned());
        std::fs::write(records.path().join("one"), r#"{"pod": "u", "container": "c", "checkpoint": "127.0.0.1:5785/drover/00:c"}"#).unwrap();
        std::fs::write(records.path().join("bad"), "{").unwrap();
        assert_eq!(containerd.recorded("one").unwrap().as_deref(), Some("127.0.0.1:5785/drover/00:c"));
        assert_eq!(containerd.recorded("other"), Ok(None));
        assert!(containerd.recorded("bad").is_err());
    }
}
