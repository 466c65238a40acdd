//! What comes in of a pack, while it comes: counted, stopped when nobody waits for it any more, and held to the disk's
//! free space, because a git server does not say beforehand how much it will be.

use std::{
    cell::{Cell, RefCell},
    io,
    path::Path,
    thread,
    time::Duration,
};

use mloc_exec::Moved;

use super::Company;
use crate::{cache::Shelf, disk::Halt, error::StoreError};

/// How often the disk is looked at, in bytes.
const LOOK_EVERY: u64 = 4 << 20;
/// How often it is told, in bytes.
const TELL_EVERY: u64 = 256 << 10;
/// Longest sleep for the node's rate before it is seen whether somebody still waits.
const NAP_MAX: Duration = Duration::from_millis(100);

/// How the stream of a pack ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It came to its end.
    Whole,
    /// The line broke.
    Broken(String),
    /// It was stopped from here.
    Stopped(StoreError),
}

/// Watches the packs of one pull.
pub(super) struct Inflow<'a> {
    halt: &'a Halt,
    folder: &'a Path,
    reserve: u64,
    company: &'a Company,
    bytes: Cell<u64>,
    told: Cell<u64>,
    looked: Cell<u64>,
    ended: RefCell<Option<Ended>>,
}

impl<'a> Inflow<'a> {
    /// For packs into a folder, of whose disk `reserve` bytes stay free.
    pub fn new(halt: &'a Halt, folder: &'a Path, reserve: u64, company: &'a Company) -> Self {
        let zero = || Cell::new(0);
        Self { halt, folder, reserve, company, bytes: zero(), told: zero(), looked: zero(), ended: RefCell::default() }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Where it goes in the end.
    pub fn shelf(&self) -> &Shelf {
        &self.company.shelf
    }

    /// How the last pack ended; it is asked once.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.take()
    }

    /// Takes note of what was read, and says when to read no more.
    pub fn pass(&self, read: io::Result<usize>) -> io::Result<usize> {
        let read = read.inspect_err(|e| {
            self.ended.replace(Some(Ended::Broken(crate::answer::root_cause(e))));
        })?;
        if read == 0 {
            self.ended.replace(Some(Ended::Whole));
            return Ok(0);
        }
        let bytes = self.bytes.get() + read as u64;
        self.bytes.set(bytes);
        if bytes - self.told.get() >= TELL_EVERY {
            self.told.set(bytes);
            (self.company.tell)(Moved { done: bytes, total: 0 });
        }
        self.wait(read as u64).and_then(|()| self.look(bytes)).map_err(|e| {
            let said = e.to_string();
            self.ended.replace(Some(Ended::Stopped(e)));
            io::Error::other(said)
        })?;
        Ok(read)
    }

    /// Until it is the time of so many bytes, or nobody waits for them any more.
    fn wait(&self, bytes: u64) -> Result<(), StoreError> {
        let mut left = self.company.limit.book(bytes);
        loop {
            self.halt.check(self.folder)?;
            if left.is_zero() {
                return Ok(());
            }
            let nap = left.min(NAP_MAX);
            thread::sleep(nap);
            left -= nap;
        }
    }

    fn look(&self, bytes: u64) -> Result<(), StoreError> {
        if bytes - self.looked.get() < LOOK_EVERY && self.looked.get() > 0 {
            return Ok(());
        }
        self.looked.set(bytes);
        self.company.shelf.enough_room(LOOK_EVERY.saturating_add(self.reserve))
    }
}
