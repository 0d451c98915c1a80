//! The disk as the archive sees it: few operations, so that tests can make each of them fail.
//!
//! Must not know what the files hold.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// A file system holding objects.
pub trait Disk: Send + Sync + 'static {
    /// Creates a file that must not exist yet.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Creates a directory and its parents.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Overwrites a file with zeros, durably, and removes it.
    fn scrub(&self, path: &Path) -> io::Result<()> {
        overwrite(path)?;
        self.remove(path)
    }
    /// Bytes that may still be written.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Opens a file of exactly `bytes` bytes that can be written anywhere without the file system having to allocate
    /// anything: one that is there, or a new one.
    fn log_file(&self, path: &Path, bytes: u64) -> io::Result<Box<dyn LogFile>>;
    /// The file systems that hold `directories`, to be synced as a whole. What fails to be written from now on is
    /// reported by their next sync.
    fn file_systems(&self, directories: &[&Path]) -> io::Result<Box<dyn FileSystems>>;
}

/// A file being written.
pub trait DiskFile: Send {
    /// Writes all of `data` at the end.
    fn append(&mut self, data: &[u8]) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file whose blocks are all there.
pub trait LogFile: Send + Sync {
    /// Writes all of `data` at an offset.
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()>;
    /// Fills `data` from an offset.
    fn read_at(&self, data: &mut [u8], at: u64) -> io::Result<()>;
    /// Makes content durable.
    fn sync(&self) -> io::Result<()>;
}

/// File systems that are synced as a whole.
pub trait FileSystems: Send {
    /// Makes everything written to them durable, data and directories.
    fn sync(&self) -> io::Result<()>;
}

/// Creates a file in place of what an earlier attempt may have left.
pub(super) fn create_anew(disk: &dyn Disk, path: &Path) -> io::Result<Box<dyn DiskFile>> {
    match disk.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(path)?;
            disk.create(path)
        }
        created => created,
    }
}

/// Where the file system writes in place, nothing of the file is left on the device.
fn overwrite(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let zeros = vec![0; 256 * 1024];
    let mut left = file.metadata()?.len();
    while left > 0 {
        let count = left.min(zeros.len() as u64);
        file.write_all(&zeros[..usize::try_from(count).unwrap_or(zeros.len())])?;
        left -= count;
    }
    file.sync_all()
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).open(path)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn log_file(&self, path: &Path, bytes: u64) -> io::Result<Box<dyn LogFile>> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) if file.metadata()?.len() == bytes => return Ok(Box::new(file)),
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let unready = path.with_extension("new");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&unready)?;
        // Blocks that are merely reserved would be converted, in the journal, when they are first written.
        let zeros = vec![0; 1024 * 1024];
        let mut left = bytes;
        while left > 0 {
            let count = left.min(zeros.len() as u64);
            file.write_all(&zeros[..usize::try_from(count).unwrap_or(zeros.len())])?;
            left -= count;
        }
        file.sync_all()?;
        fs::rename(&unready, path)?;
        path.parent().map_or(Ok(()), |parent| self.sync_dir(parent))?;
        Ok(Box::new(file))
    }

    fn file_systems(&self, directories: &[&Path]) -> io::Result<Box<dyn FileSystems>> {
        let mut found: Vec<(u64, File)> = Vec::new();
        for directory in directories {
            let open = File::open(directory)?;
            let device = open.metadata()?.dev();
            if found.iter().all(|(known, _)| *known != device) {
                found.push((device, open));
            }
        }
        Ok(Box::new(Mounted(found.into_iter().map(|(_, open)| open).collect())))
    }
}

/// A directory of each file system, open since before anything was written: `syncfs` reports what failed since then.
struct Mounted(Vec<File>);

impl FileSystems for Mounted {
    fn sync(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|directory| Ok(rustix::fs::syncfs(directory)?))
    }
}

impl LogFile for File {
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(data, at)
    }

    fn read_at(&self, data: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(data, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl DiskFile for File {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.write_all(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        // The length of a new file is metadata that fdatasync writes too, since the data cannot be read without it.
        self.sync_data()
    }
}
