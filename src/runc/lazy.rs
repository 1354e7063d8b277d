//! The create's part of a lazy restore: it starts a keeper, and goes on once that is ready.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{CHECKPOINT, KEEP, Restore};
use crate::markers::evidence::work_of;

/// What a keeper says when it is ready; whatever else it says is why it is not.
pub(super) const IS_READY: &str = "ready";

impl Restore<'_> {
    /// Starts a keeper ([`super::keeper`]), which outlives this call. It learns that the call is over by its standard input.
    ///
    /// # Errors
    /// Why there can be none. Nothing has been restored then, and nothing is left of it.
    pub(super) fn start_keeper(&self, images: &Path, source: Option<&Path>) -> Result<Child, String> {
        let absolute = |path: &Path| fs::canonicalize(path).map_err(|error| format!("{} is not there: {error}", path.display()));
        let records = absolute(&self.places.records)?;
        let record = records.join(self.record.file_name().unwrap_or(OsStr::new("-")));
        let mut command = Command::new(&self.places.program);
        command.arg(KEEP).arg(record).arg(absolute(&images.join(CHECKPOINT))?).args(source).args(self.call.globals);
        // The container's output is none of its business: whoever reads that waits for everybody who has it. There is nothing else to inherit, since Go's
        // and this program's descriptors are all close-on-exec.
        command.current_dir(work_of(&self.bundle)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut keeper = command.spawn().map_err(|error| format!("{} cannot be run: {error}", self.places.program.display()))?;
        // One line; it gives up by itself what does not begin in time.
        let mut said = String::new();
        if let Some(output) = keeper.stdout.take() {
            let _ = BufReader::new(output).read_line(&mut said);
        }
        if said.trim_end() == IS_READY {
            return Ok(keeper);
        }
        let _ = keeper.wait();
        Err(if said.is_empty() { "its keeper did not begin".to_owned() } else { said.trim_end().to_owned() })
    }
}
