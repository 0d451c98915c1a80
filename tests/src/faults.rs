//! Faults below the program: syncs that fail on order, and a volume whose power can be cut.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{have, skip, wait_for};

/// `EIO`.
pub const EIO: i32 = 5;
/// `ENOSPC`.
pub const ENOSPC: i32 = 28;

/// What follows the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Further syncs work.
    Works,
    /// Further syncs of the same file report success and do nothing, as after a kernel dropped what it could not write.
    Lies,
    /// Further syncs fail, until the order is taken back.
    Fails,
}

/// Which syncs fail, and how.
#[derive(Debug, Clone, Copy)]
pub struct SyncFault {
    pub errno: i32,
    pub after: After,
    /// `file`, `dir` or `any`.
    pub kind: &'static str,
    /// Must occur in the path.
    pub path: &'static str,
}

/// The preloaded library and the file by which it is given orders.
#[derive(Debug)]
pub struct FailingSync {
    library: PathBuf,
    order: PathBuf,
}

impl FailingSync {
    /// Compiles the library into `dir`; `None`, said aloud, without a C compiler.
    pub fn new(dir: &Path) -> Option<Self> {
        if !have("cc") {
            return None;
        }
        Some(Self { library: shim(dir, "failing_sync"), order: dir.join("sync-order") })
    }

    /// The environment that puts the library below a program.
    pub fn environment(&self) -> Vec<(String, OsString)> {
        vec![
            ("LD_PRELOAD".into(), self.library.clone().into_os_string()),
            ("SYNC_FAULT_ORDER".into(), self.order.clone().into_os_string()),
        ]
    }

    /// From now on these syncs fail.
    pub fn order(&self, fault: SyncFault) {
        let mode = match fault.after {
            After::Works => "once",
            After::Lies => "lie",
            After::Fails => "always",
        };
        let text = format!("{} {mode} {} {}\n", fault.errno, fault.kind, fault.path);
        // By rename, so that nobody reads half of it.
        let part = self.order.with_extension("part");
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, &self.order).unwrap();
    }

    /// Takes the order back.
    pub fn withdraw(&self) {
        let _ = std::fs::remove_file(&self.order);
    }

    /// What failed so far, a line each: call and path.
    pub fn hits(&self) -> String {
        let mut path = self.order.clone().into_os_string();
        path.push(".hits");
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

/// Compiles a library of `shim/` into `dir`.
fn shim(dir: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim").join(name).with_extension("c");
    let library = dir.join(name).with_extension("so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

/// A clock that can be set, for one program.
#[derive(Debug)]
pub struct SetClock {
    library: PathBuf,
    offset: PathBuf,
}

impl SetClock {
    /// Compiles the library into `dir`; `None`, said aloud, without a C compiler.
    pub fn new(dir: &Path) -> Option<Self> {
        have("cc").then(|| Self { library: shim(dir, "set_clock"), offset: dir.join("clock-offset") })
    }

    /// The environment that puts the library below a program.
    pub fn environment(&self) -> Vec<(String, OsString)> {
        vec![
            ("LD_PRELOAD".into(), self.library.clone().into_os_string()),
            ("CLOCK_OFFSET".into(), self.offset.clone().into_os_string()),
        ]
    }

    /// From now on the program's clock is so many seconds ahead of this machine's, or behind.
    pub fn set(&self, ahead_s: i64) {
        // By rename, so that nobody reads half of it.
        let part = self.offset.with_extension("part");
        std::fs::write(&part, ahead_s.to_string()).unwrap();
        std::fs::rename(part, &self.offset).unwrap();
    }
}

/// A file system of its own, in a file, that can lose power.
#[derive(Debug)]
pub struct Volume {
    image: PathBuf,
    /// Where it is mounted.
    pub mount: PathBuf,
    mounted: bool,
}

impl Volume {
    /// A fresh, mounted ext4 file system; `None`, said aloud, where this machine cannot do it.
    pub fn new(dir: &Path) -> Option<Self> {
        if !have("python3") {
            return None;
        }
        let id = Command::new("id").arg("-u").output().unwrap();
        if id.stdout.trim_ascii() != b"0" {
            skip("root, for a loop-mounted file system");
            return None;
        }
        std::fs::create_dir_all(dir).unwrap();
        let mut volume = Self { image: dir.join("ext4.img"), mount: dir.join("volume"), mounted: false };
        std::fs::create_dir_all(&volume.mount).unwrap();
        std::fs::File::create(&volume.image).unwrap().set_len(768 << 20).unwrap();
        if !Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&volume.image).status().unwrap().success()
            || !volume.mount()
        {
            skip("a loop device with ext4");
            return None;
        }
        Some(volume)
    }

    /// Mounts it, which replays the file system's journal; `false` when that fails.
    pub fn mount(&mut self) -> bool {
        self.mounted =
            Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.mount]).status().unwrap().success();
        self.mounted
    }

    /// Everything that was not synced is gone.
    pub fn cut(&self) {
        let code = "import fcntl, os, struct, sys\n\
                    fd = os.open(sys.argv[1], os.O_RDONLY)\n\
                    fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))";
        let cut = Command::new("python3").args(["-c", code]).arg(&self.mount).status().unwrap();
        assert!(cut.success(), "FS_IOC_SHUTDOWN failed");
    }

    /// Leaves no room on it.
    pub fn fill(&self) {
        let mut filler = std::fs::File::create(self.mount.join("filler")).unwrap();
        let full = std::iter::repeat_with(|| filler.write_all(&[1; 65_536])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    /// Makes room again.
    pub fn make_room(&self) {
        std::fs::remove_file(self.mount.join("filler")).unwrap();
    }

    /// Unmounts it once nothing uses it any more.
    pub fn unmount(&mut self) {
        // A process that was killed a moment ago may still hold the mount.
        wait_for("the volume to be free", || {
            Command::new("umount").arg(&self.mount).output().unwrap().status.success()
        });
        self.mounted = false;
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
        }
    }
}
