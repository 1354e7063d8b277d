//! The runtime: an OCI runtime in front of runc that restores claimed containers of replacements. See [`drover::runc`].

use std::process::ExitCode;

use drover::runc::{Places, main_with};

fn main() -> ExitCode {
    main_with(&Places::of_node(), &std::env::args_os().skip(1).collect::<Vec<_>>())
}
