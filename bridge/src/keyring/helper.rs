//! Opens and locks key files in a short-lived process of its own.
//!
//! Under a password that somebody chose, scrypt with n = 2^18 and r = 8 fills 256 MB by definition and Argon2id fills 64 MB here. A daemon that did that itself
//! would carry the peak, and what the allocator keeps of it, for as long as it lives. So the program starts itself once
//! more with a hidden command, hands passwords and files over by pipe and takes the keys back by pipe: nothing secret is
//! on a command line, in an environment or in a file, and the memory is gone with the process.
//!
//! A helper that cannot run, or says no, is no error: [`Helper::run`] then returns nothing and the caller does the work
//! itself, which also finds the reason in its own words. Must not know where keys are kept.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use alloy::signers::local::PrivateKeySigner;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use zeroize::Zeroizing;

use crate::ledger::keystore;
use crate::payload::keys::RecipientSecret;

/// The hidden command.
pub(crate) const COMMAND: &str = "key-helper";
/// Longest password or file that is handed over.
const FIELD_BYTES_MAX: u32 = 1 << 20;

/// Whether the running program has [`COMMAND`]. Programs that only link this library, such as tests, have not.
static OFFERED: AtomicBool = AtomicBool::new(false);

/// Says that the running program answers [`COMMAND`] with [`serve`].
pub(crate) fn offer() {
    OFFERED.store(true, Ordering::Relaxed);
}

/// What is to be done under the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Task {
    /// From the text of a keystore file to the 32 bytes of its key.
    OpenKeystore = 1,
    /// From the 32 bytes of a key to the text of a keystore file.
    LockKeystore = 2,
    /// From a locked OpenPGP key to an unlocked one.
    OpenRecipient = 3,
    /// From an unlocked OpenPGP key to a locked one.
    LockRecipient = 4,
}

impl Task {
    fn of(number: u8) -> Option<Self> {
        [Self::OpenKeystore, Self::LockKeystore, Self::OpenRecipient, Self::LockRecipient]
            .into_iter()
            .find(|task| *task as u8 == number)
    }

    /// Does it here and now. The caller of a helper learns only that it did not work, never why.
    fn perform(self, password: &str, input: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let text = || std::str::from_utf8(input).ok();
        Some(Zeroizing::new(match self {
            Self::OpenKeystore => keystore::decrypt(text()?, password).ok()?.to_bytes().to_vec(),
            Self::LockKeystore => {
                keystore::encrypt(&PrivateKeySigner::from_slice(input).ok()?, password).ok()?.into_bytes()
            }
            Self::OpenRecipient => RecipientSecret::from_locked_bytes(input, password).ok()?.to_open_bytes().ok()?,
            Self::LockRecipient => RecipientSecret::from_open_bytes(input).ok()?.to_locked_bytes(password).ok()?,
        }))
    }
}

/// A helper process, started when it is first needed and gone when this is dropped.
pub(super) struct Helper {
    state: State,
}

enum State {
    NotStarted,
    Running(Child),
    Useless,
}

impl Helper {
    /// A helper, if the running program offers one.
    pub(super) fn new() -> Self {
        Self { state: if OFFERED.load(Ordering::Relaxed) { State::NotStarted } else { State::Useless } }
    }

    /// Has the helper do it. Nothing when there is no helper or it did not succeed.
    pub(super) fn run(&mut self, task: Task, password: &str, input: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let answer = match self.ask(task, password, input) {
            Ok(answer) => answer?,
            Err(error) => {
                tracing::warn!(%error, "no helper process for key derivation: this process does it and peaks at 280 MB");
                self.dismiss();
                return None;
            }
        };
        match answer.split_first() {
            Some((1, result)) => Some(Zeroizing::new(result.to_vec())),
            _ => None,
        }
    }

    /// `Ok(None)` when there is no helper to be asked.
    fn ask(&mut self, task: Task, password: &str, input: &[u8]) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        if matches!(self.state, State::NotStarted) {
            self.state = State::Running(start()?);
        }
        let State::Running(child) = &mut self.state else { return Ok(None) };
        let (Some(to), Some(from)) = (&mut child.stdin, &mut child.stdout) else { return Ok(None) };
        to.write_all(&[task as u8])?;
        write_field(to, password.as_bytes())?;
        write_field(to, input)?;
        to.flush()?;
        Ok(Some(read_field(from)?))
    }

    fn dismiss(&mut self) {
        if let State::Running(mut child) = std::mem::replace(&mut self.state, State::Useless) {
            // The end of its input ends it; it is killed all the same, because it may be deep in a derivation.
            drop(child.stdin.take());
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.dismiss();
    }
}

fn start() -> io::Result<Child> {
    // The running image itself where the system names it, so that a program replaced on disk meanwhile is not mixed up with it.
    let image = Path::new("/proc/self/exe");
    let program: PathBuf = if image.exists() { image.to_owned() } else { std::env::current_exe()? };
    Command::new(program)
        .arg0("pacs-bridge")
        .arg(COMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

fn write_field(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= FIELD_BYTES_MAX);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(bytes)
}

fn read_field(from: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > FIELD_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Zeroizing::new(vec![0; length as usize]);
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The helper's side: answers until its input ends. Refuses to talk to a person.
pub(crate) fn serve() -> ExitCode {
    let (input, output) = (io::stdin(), io::stdout());
    if input.is_terminal() || output.is_terminal() {
        return ExitCode::from(2);
    }
    // Keys and passwords are in this memory: no core file, and no debugger of the same user.
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    if setrlimit(Resource::Core, no_core).is_err() || set_dumpable_behavior(DumpableBehavior::NotDumpable).is_err() {
        return ExitCode::FAILURE;
    }
    match answer(&mut input.lock(), &mut output.lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut number = [0];
    while from.read(&mut number)? == 1 {
        let (password, input) = (read_field(from)?, read_field(from)?);
        let task = Task::of(number[0]).ok_or(io::ErrorKind::InvalidData)?;
        let done = std::str::from_utf8(&password).ok().and_then(|password| task.perform(password, &input));
        let mut reply = Zeroizing::new(Vec::with_capacity(1 + done.as_ref().map_or(0, |bytes| bytes.len())));
        reply.push(u8::from(done.is_some()));
        reply.extend_from_slice(done.as_deref().map_or(&[], Vec::as_slice));
        write_field(to, &reply)?;
        to.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ask(requests: &[(Task, &str, &[u8])]) -> Vec<Zeroizing<Vec<u8>>> {
        let (mut wire, mut back) = (Vec::new(), Vec::new());
        for (task, password, input) in requests {
            wire.push(*task as u8);
            write_field(&mut wire, password.as_bytes()).unwrap();
            write_field(&mut wire, input).unwrap();
        }
        answer(&mut wire.as_slice(), &mut back).unwrap();
        let mut back = back.as_slice();
        requests.iter().map(|_| read_field(&mut back).unwrap()).collect()
    }

    #[test]
    fn what_the_helper_locks_opens_here_and_the_other_way_round() {
        let (key, recipient) = (PrivateKeySigner::random(), RecipientSecret::generate().unwrap());
        let (secret, open) = (key.to_bytes().to_vec(), recipient.to_open_bytes().unwrap());
        let locked = ask(&[(Task::LockKeystore, "a", &secret), (Task::LockRecipient, "b", &open)]);
        assert!(locked.iter().all(|reply| reply[0] == 1));
        let text = std::str::from_utf8(&locked[0][1..]).unwrap();
        assert_eq!(keystore::decrypt(text, "a").unwrap().address(), key.address());
        let again = RecipientSecret::from_locked_bytes(&locked[1][1..], "b").unwrap();
        assert_eq!(again.recipient().unwrap().fingerprint(), recipient.recipient().unwrap().fingerprint());

        let opened = ask(&[
            (Task::OpenKeystore, "a", &locked[0][1..]),
            (Task::OpenRecipient, "b", &locked[1][1..]),
            (Task::OpenKeystore, "wrong", &locked[0][1..]),
        ]);
        assert_eq!(opened[0][1..], secret);
        assert_eq!(opened[1][1..], open);
        assert_eq!(opened[2].as_slice(), [0], "a failure has no content");
    }

    #[test]
    fn broken_requests_end_the_helper() {
        for wire in [&[9, 0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 0xff, 0xff, 0xff, 0xff], &[1, 0, 0, 0, 5, 1]] {
            assert!(answer(&mut &*wire, &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn a_program_that_offers_no_helper_is_never_started_again() {
        assert_eq!(Helper::new().run(Task::OpenKeystore, "x", b"{}"), None);
    }
}
