//! Facts of the machine and of the processes under test, from /proc.

use std::fs::read_to_string;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the figures of a command depend on.
pub(crate) fn facts(command: &str) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let line = |file: &str, key: &str| -> String {
        let text = read_to_string(file).unwrap_or_default();
        let found = text.lines().find(|line| line.starts_with(key)).and_then(|line| line.split(':').nth(1));
        found.unwrap_or("unknown").trim().to_owned()
    };
    let kib: u64 = line("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let dir = std::env::temp_dir();
    let kind = file_system(&dir);
    let mut facts = vec![
        format!("Command: `{command}`"),
        format!(
            "Machine: {cores} cores ({}), {:.0} GB of memory, Linux {}, {kind}",
            line("/proc/cpuinfo", "model name"),
            kib as f64 / 1e6,
            read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim()
        ),
        format!(
            "Load average of the last minute when the run began: {} (anything near the number of cores means that \
             others were working on the machine)",
            read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default()
        ),
    ];
    if kind == "tmpfs" {
        facts.push("The temporary directory is on tmpfs, where a sync costs nothing: set TMPDIR to a disk".into());
    }
    facts
}

/// The type of the file system that a directory is on.
fn file_system(dir: &Path) -> String {
    let mounts = read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let over = fields.filter(|f| f.len() > 2 && dir.starts_with(f[1]));
    over.max_by_key(|f| f[1].len()).map_or_else(|| "unknown".into(), |f| f[2].to_owned())
}

/// Writes everything dirty to the disks.
pub(crate) fn sync() {
    let synced = std::process::Command::new("sync").status();
    assert!(synced.is_ok_and(|status| status.success()), "sync failed");
}

fn children(pid: u32) -> Vec<u32> {
    let list = read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Peak resident memory of one process, in bytes.
pub(crate) fn peak_bytes(pid: u32) -> u64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// Begins a new peak. `false` when the kernel does not allow it, so that peaks count from the start of the process.
pub(crate) fn reset_peak(pid: u32) -> bool {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok()
}

/// Processor time of a process and its children, in milliseconds.
pub(crate) fn cpu_ms(pid: u32) -> f64 {
    // Fields 14 to 17 of /proc/PID/stat: user, system, and both again for children that ended. In hundredths of a second.
    let ticks = |pid: u32, fields: usize| -> u64 {
        let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().skip(11).take(fields).filter_map(|n| n.parse::<u64>().ok()).sum()
    };
    let total = ticks(pid, 4) + children(pid).into_iter().map(|child| ticks(child, 2)).sum::<u64>();
    total as f64 * 10.0
}

/// Watches the peak memory of a process that forks, summed over the processes that live at the same time.
pub(crate) struct PeakWatch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PeakWatch {
    pub(crate) fn start(pid: u32) -> Self {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (peak.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let sum = peak_bytes(pid) + children(pid).into_iter().map(peak_bytes).sum::<u64>();
                seen.fetch_max(sum, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { peak, stop, thread: Some(thread) }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for PeakWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
