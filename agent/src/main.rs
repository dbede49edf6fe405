//! `dinle`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dinle::cli::main()
}
