//! What comes in of a pack, while it comes: counted, stopped when nobody waits for it any more, and held to the disk's
//! free space, because a git server does not say beforehand how much it will be.

use std::{
    cell::{Cell, RefCell},
    io,
    path::Path,
};

use mloc_exec::{MakeRoom, Moved, OnMoved};

use crate::{
    disk::{self, Halt},
    error::StoreError,
};

/// How often the disk is looked at, in bytes.
const LOOK_EVERY: u64 = 4 << 20;
/// How often it is told, in bytes.
const TELL_EVERY: u64 = 256 << 10;

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
    room: &'a MakeRoom,
    tell: &'a OnMoved,
    bytes: Cell<u64>,
    told: Cell<u64>,
    looked: Cell<u64>,
    ended: RefCell<Option<Ended>>,
}

impl<'a> Inflow<'a> {
    /// For packs into a folder, of whose disk `reserve` bytes stay free.
    pub fn new(halt: &'a Halt, folder: &'a Path, reserve: u64, room: &'a MakeRoom, tell: &'a OnMoved) -> Self {
        let zero = || Cell::new(0);
        Self {
            halt,
            folder,
            reserve,
            room,
            tell,
            bytes: zero(),
            told: zero(),
            looked: zero(),
            ended: RefCell::default(),
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
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
            (self.tell)(Moved { done: bytes, total: 0 });
        }
        self.halt.check(self.folder).and_then(|()| self.look(bytes)).map_err(|e| {
            let said = e.to_string();
            self.ended.replace(Some(Ended::Stopped(e)));
            io::Error::other(said)
        })?;
        Ok(read)
    }

    fn look(&self, bytes: u64) -> Result<(), StoreError> {
        if bytes - self.looked.get() < LOOK_EVERY && self.looked.get() > 0 {
            return Ok(());
        }
        self.looked.set(bytes);
        enough_room(LOOK_EVERY, self.folder, self.reserve, self.room)
    }
}

/// Whether so many bytes fit besides what stays free, even with what `room` could free.
pub(super) fn enough_room(bytes: u64, folder: &Path, reserve: u64, room: &MakeRoom) -> Result<(), StoreError> {
    let needed = bytes.saturating_add(reserve);
    let free = || disk::free_bytes(folder).map_err(|e| StoreError::disk("look at", folder, e));
    if needed <= free()? {
        return Ok(());
    }
    room(needed);
    match free()? {
        free if needed > free => Err(StoreError::NoSpace { folder: folder.to_owned(), needed, free }),
        _ => Ok(()),
    }
}
