//! The binary `drover`.

use std::process::ExitCode;

use clap::Parser as _;
use drover::cli::Cli;

fn main() -> ExitCode {
    // The only provider that is compiled in; every TLS library below asks for it.
    let mut provider = rustls::crypto::ring::default_provider();
    // A checkpoint's memory is encrypted and decrypted while the pod is frozen, and ten rounds take less than fourteen.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let _ = provider.install_default();
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
