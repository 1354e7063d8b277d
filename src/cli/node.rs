//! `drover node`.
use std::process::ExitCode;
/// Node set-up.
#[derive(Debug, clap::Subcommand)]
pub enum Command {}
impl Command {
    /// Runs it.
    ///
    /// # Errors
    /// What a person should read.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {}
    }
}
