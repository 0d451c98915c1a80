//! Memory for objects on their way into the intake log: blocks that are used again, and never more than a fixed sum.
//!
//! Must not know what the bytes are.

use std::sync::{Arc, Mutex, PoisonError};

/// Size of a block, in bytes.
const BLOCK_BYTES: usize = 128 * 1024;
/// Blocks in use or kept at most: 32 MiB for all associations together. Who gets none writes to a file of its own.
const BLOCKS_MAX: usize = 256;

type Block = Box<[u8]>;

/// The blocks. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Blocks(Arc<Mutex<Pool>>);

#[derive(Default)]
struct Pool {
    idle: Vec<Block>,
    /// Idle ones and those in buffers.
    made: usize,
}

/// An object's bytes. Its blocks go back when it is dropped.
pub(super) struct Buffer {
    blocks: Blocks,
    held: Vec<Block>,
    bytes: usize,
    bytes_max: usize,
}

impl Blocks {
    /// A buffer of at most `bytes_max` bytes.
    pub(super) fn buffer(&self, bytes_max: usize) -> Buffer {
        Buffer { blocks: self.clone(), held: Vec::new(), bytes: 0, bytes_max }
    }

    /// Gives idle memory back to the system.
    pub(super) fn trim(&self) {
        let mut pool = self.lock();
        pool.made -= pool.idle.len();
        pool.idle = Vec::new();
    }

    fn take(&self) -> Option<Block> {
        let mut pool = self.lock();
        if let Some(block) = pool.idle.pop() {
            return Some(block);
        }
        if pool.made == BLOCKS_MAX {
            return None;
        }
        pool.made += 1;
        drop(pool);
        Some(vec![0; BLOCK_BYTES].into_boxed_slice())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// Bytes held.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Appends `data`, or leaves the buffer as it was and returns false when it must not grow so far.
    #[must_use]
    pub(super) fn append(&mut self, mut data: &[u8]) -> bool {
        if self.bytes + data.len() > self.bytes_max {
            return false;
        }
        let before = self.held.len();
        while self.held.len() * BLOCK_BYTES < self.bytes + data.len() {
            match self.blocks.take() {
                Some(block) => self.held.push(block),
                None => {
                    let back = self.held.split_off(before);
                    self.blocks.lock().idle.extend(back);
                    return false;
                }
            }
        }
        while !data.is_empty() {
            let (block, at) = (self.bytes / BLOCK_BYTES, self.bytes % BLOCK_BYTES);
            let count = data.len().min(BLOCK_BYTES - at);
            self.held[block][at..at + count].copy_from_slice(&data[..count]);
            self.bytes += count;
            data = &data[count..];
        }
        true
    }

    /// The bytes, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.bytes;
        self.held.iter().map(move |block| {
            let count = left.min(BLOCK_BYTES);
            left -= count;
            &block[..count]
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.blocks.lock().idle.append(&mut self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_returns_what_was_appended_and_gives_its_blocks_back() {
        let blocks = Blocks::default();
        let bytes: Vec<u8> = (0..BLOCK_BYTES * 2 + 77).map(|n| n as u8).collect();
        let mut buffer = blocks.buffer(bytes.len());
        for part in bytes.chunks(1000) {
            assert!(buffer.append(part));
        }
        assert!(!buffer.append(&[0]), "more than its limit");
        assert_eq!(buffer.parts().collect::<Vec<_>>().concat(), bytes);
        drop(buffer);
        assert_eq!(blocks.lock().idle.len(), 3);
        assert_eq!(blocks.lock().made, 3);
        blocks.trim();
        assert_eq!(blocks.lock().made, 0);
    }

    #[test]
    fn all_buffers_together_have_a_limit() {
        let blocks = Blocks::default();
        let block = vec![1; BLOCK_BYTES];
        let mut buffers: Vec<Buffer> = (0..BLOCKS_MAX).map(|_| blocks.buffer(usize::MAX)).collect();
        assert!(buffers.iter_mut().all(|buffer| buffer.append(&block)));
        assert!(!buffers[0].append(&[1]));
        assert_eq!(buffers[0].len(), BLOCK_BYTES);
        buffers.pop();
        assert!(buffers[0].append(&[1]));
    }
}
