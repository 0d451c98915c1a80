//! The `pacs-bridge` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    bridge::cli::run(std::env::args_os(), std::env::vars().collect())
}
