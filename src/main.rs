//! The binary `drover`.

use std::process::ExitCode;

use clap::Parser as _;
use drover::cli::Cli;

fn main() -> ExitCode {
    // The only provider that is compiled in; every TLS library below asks for it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
