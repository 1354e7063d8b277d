//! The gate: an OCI createRuntime hook that refuses containers of fenced pods. See [`drover::gate`].

use std::{io, path::Path, process::ExitCode};

use drover::{
    gate::{Decision, decide},
    markers::GATE_ROOT,
};

fn main() -> ExitCode {
    match decide(Path::new(GATE_ROOT), io::stdin().lock()) {
        Decision::Allow => ExitCode::SUCCESS,
        Decision::AllowUnknown(warning) => {
            eprintln!("{warning}");
            ExitCode::SUCCESS
        }
        Decision::Refuse(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}
