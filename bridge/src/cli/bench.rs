//! The measurements of the source tree, from the program that they measure. They need Orthanc, DCMTK, geth and kubo and code that nobody should run
//! at a site, so they are a program of their own, which lies beside this one where both were built.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::Failed;

/// The program's file name.
const PROGRAM: &str = "bench";

/// Becomes that program.
///
/// # Errors
/// That it is not there, or why it does not start.
pub(super) fn run(arguments: &[OsString]) -> Result<std::convert::Infallible, Failed> {
    let program = std::env::current_exe()?.with_file_name(PROGRAM);
    if !program.is_file() {
        return Err(Failed(format!(
            "{} is not there: the measurements are made where the program was built, with `make bench` and `make paper`",
            program.display()
        )));
    }
    Err(Command::new(program).args(arguments).exec().into())
}
