//! Training samples: which stored examples, or parts of them, make one.
//!
//! Held here are numbers of examples, four bytes each, or with packing twelve bytes a piece of one; never their tokens.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::{DatasetError, TokenFile, TokenizedExample, Truncation};
use crate::random::permutation;

/// Rows that are packed together: what the reference's `map` hands over in one go.
const WINDOW: usize = 1000;
/// Streams of the seed that no epoch uses.
const HELD_OUT: u64 = u64::MAX;
const SHUFFLED: u64 = u64::MAX - 1;

/// How several examples share a sample of so many tokens; names and results are the reference's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// `bfd`: best fit, the longest first; what is longer than a sample is cut.
    BestFit,
    /// `bfd_split`: the same, but what is longer is split, and its parts are packed like examples.
    BestFitSplit,
    /// `wrapped`: examples follow each other as one text, cut wherever a sample is full. Attention goes across them.
    Wrapped,
}

/// Stored examples that are to be learnt, in an order.
#[derive(Debug, Clone)]
pub struct Selection {
    file: Arc<TokenFile>,
    /// Their numbers; all, in order, when absent.
    chosen: Option<Vec<u32>>,
}

/// Training samples, numbered from 0.
#[derive(Debug, Clone)]
pub struct Samples {
    selection: Selection,
    packed: Option<Packed>,
}

#[derive(Debug, Clone)]
struct Packed {
    pieces: Vec<Piece>,
    /// For each sample the number of pieces up to its end.
    ends: Vec<u32>,
    /// Whether the pieces of a sample are one sequence.
    joined: bool,
}

/// A part of an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    example: u32,
    from: u32,
    to: u32,
}

impl Piece {
    fn len(self) -> usize {
        (self.to - self.from) as usize
    }
}

impl Selection {
    /// All examples of a file.
    pub fn of(file: Arc<TokenFile>) -> Self {
        Self { file, chosen: None }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or(self.file.len(), Vec::len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Splits off so many examples, picked by the seed alone: (the others, those). Both keep their order.
    pub fn split(&self, held_out: usize, seed: u64) -> (Self, Self) {
        let picked = held_out_of(self.len(), held_out, seed);
        let part = |held: bool| {
            let of = (0..self.len()).filter(|at| picked[*at] == held).map(|at| self.example(at));
            Self { file: self.file.clone(), chosen: Some(of.collect()) }
        };
        (part(false), part(true))
    }

    /// The same examples in an order of the seed alone.
    #[must_use]
    pub fn shuffled(&self, seed: u64) -> Self {
        let order = permutation(self.len(), seed, SHUFFLED).into_iter().map(|at| self.example(at));
        Self { file: self.file.clone(), chosen: Some(order.collect()) }
    }

    /// Every example a sample.
    pub fn samples(self) -> Samples {
        Samples { selection: self, packed: None }
    }

    /// Every example a sample of at most `max_length` tokens (at least 1), and how many were cut.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn cut(self, max_length: usize, truncation: Truncation) -> Result<(Samples, usize), DatasetError> {
        let lengths = self.file.lengths()?;
        let longest = u32::try_from(max_length).unwrap_or(u32::MAX).max(1);
        let piece = |at: usize| {
            let example = self.example(at);
            let length = lengths[example as usize];
            match truncation {
                Truncation::KeepStart => Piece { example, from: 0, to: length.min(longest) },
                Truncation::KeepEnd => Piece { example, from: length.saturating_sub(longest), to: length },
            }
        };
        let pieces: Vec<Piece> = (0..self.len()).map(piece).collect();
        let cut = pieces.iter().filter(|piece| piece.to - piece.from < lengths[piece.example as usize]).count();
        let ends = (1..=pieces.len() as u32).collect();
        Ok((Samples { packed: Some(Packed { pieces, ends, joined: false }), selection: self }, cut))
    }

    /// Samples of at most `max_length` tokens (at least 1) of several examples each, and how many examples were cut.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn packed(self, packing: Packing, max_length: usize) -> Result<(Samples, usize), DatasetError> {
        let lengths = self.file.lengths()?;
        let whole = |at: usize| {
            let example = self.example(at);
            Piece { example, from: 0, to: lengths[example as usize] }
        };
        let (mut pieces, mut ends, mut cut) = (Vec::new(), Vec::new(), 0);
        for from in (0..self.len()).step_by(WINDOW) {
            let window = (from..self.len().min(from + WINDOW)).map(whole);
            let window: Vec<Piece> = window.filter(|piece| piece.len() > 0).collect();
            let samples = match packing {
                Packing::BestFit => {
                    cut += window.iter().filter(|piece| piece.len() > max_length).count();
                    best_fit(window.iter().filter_map(|piece| parts(*piece, max_length).next()).collect(), max_length)
                }
                Packing::BestFitSplit => {
                    best_fit(window.iter().flat_map(|piece| parts(*piece, max_length)).collect(), max_length)
                }
                Packing::Wrapped => wrapped(&window, max_length),
            };
            for sample in samples {
                pieces.extend(sample);
                ends.push(pieces.len() as u32);
            }
        }
        let packed = Packed { pieces, ends, joined: packing == Packing::Wrapped };
        Ok((Samples { selection: self, packed: Some(packed) }, cut))
    }

    /// The number of the example at a place; one that is in no file for a place that there is not.
    fn example(&self, at: usize) -> u32 {
        match &self.chosen {
            None => u32::try_from(at).unwrap_or(u32::MAX),
            Some(chosen) => chosen.get(at).copied().unwrap_or(u32::MAX),
        }
    }
}

impl Samples {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.packed.as_ref().map_or(self.selection.len(), |packed| packed.ends.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sequences of a sample: one, or those packed into it. No token sees one of another sequence, and positions of
    /// each begin at 0.
    ///
    /// # Errors
    /// Those of the disk; a sample that is not there.
    pub fn read(&self, sample: usize) -> Result<Vec<TokenizedExample>, DatasetError> {
        let file = &self.selection.file;
        let Some(Packed { pieces, ends, joined }) = &self.packed else {
            return Ok(vec![file.read(self.selection.example(sample) as usize, None)?]);
        };
        let read = |piece: &Piece| file.read(piece.example as usize, Some(piece.from as usize..piece.to as usize));
        let sequences = pieces[between(ends, sample)].iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if !joined {
            return Ok(sequences);
        }
        let mut one = TokenizedExample::default();
        for sequence in sequences {
            one.input_ids.extend(sequence.input_ids);
            one.labels.extend(sequence.labels);
        }
        Ok(vec![one])
    }

    /// How many tokens each sample has: four bytes a sample.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn lengths(&self) -> Result<Vec<u32>, DatasetError> {
        Ok(match &self.packed {
            Some(Packed { pieces, ends, .. }) => {
                let length = |sample| pieces[between(ends, sample)].iter().map(|piece| piece.to - piece.from).sum();
                (0..ends.len()).map(length).collect()
            }
            None => {
                let all = self.selection.file.lengths()?;
                (0..self.len()).map(|at| all[self.selection.example(at) as usize]).collect()
            }
        })
    }
}

/// Which of `all` rows are held out, picked by the seed alone.
pub fn held_out_of(all: usize, held_out: usize, seed: u64) -> Vec<bool> {
    let mut picked = vec![false; all];
    permutation(all, seed, HELD_OUT).into_iter().take(held_out).for_each(|at| picked[at] = true);
    picked
}

/// The pieces of a sample, by their numbers; none past the last sample.
fn between(ends: &[u32], sample: usize) -> Range<usize> {
    let Some(end) = ends.get(sample) else { return 0..0 };
    let start = sample.checked_sub(1).map_or(0, |before| ends[before]);
    start as usize..*end as usize
}

/// A piece as parts of `max_length` tokens and a last shorter one.
fn parts(piece: Piece, max_length: usize) -> impl Iterator<Item = Piece> {
    let longest = u32::try_from(max_length).unwrap_or(u32::MAX).max(1);
    (piece.from..piece.to).step_by(longest as usize).map(move |from| Piece {
        example: piece.example,
        from,
        to: from.saturating_add(longest).min(piece.to),
    })
}

/// Best fit decreasing: each piece, the longest first, goes where it leaves the least room, of several such samples
/// into the one that has had that room for longest. Samples are in the order in which they were begun.
/// (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", <https://arxiv.org/abs/2404.10830>.)
fn best_fit(mut pieces: Vec<Piece>, max_length: usize) -> Vec<Vec<Piece>> {
    // Stable: pieces of one length keep their order.
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
    let mut samples: Vec<Vec<Piece>> = Vec::new();
    let mut with_room: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for piece in pieces {
        let found = with_room.range_mut(piece.len()..).next().map(|(room, of)| (*room, of.pop_front(), of.is_empty()));
        let (room, sample) = match found {
            Some((room, Some(sample), last)) => {
                if last {
                    with_room.remove(&room);
                }
                (room, sample)
            }
            _ => {
                samples.push(Vec::new());
                (max_length, samples.len() - 1)
            }
        };
        samples[sample].push(piece);
        if room > piece.len() {
            with_room.entry(room - piece.len()).or_default().push_back(sample);
        }
    }
    samples
}

/// All pieces as one text, in samples of `max_length` and a last shorter one.
fn wrapped(pieces: &[Piece], max_length: usize) -> Vec<Vec<Piece>> {
    let mut samples: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for piece in pieces {
        let mut from = piece.from;
        while from < piece.to {
            if room == 0 {
                samples.push(Vec::new());
                room = max_length.max(1);
            }
            let taken = room.min((piece.to - from) as usize);
            let to = from + taken as u32;
            if let Some(sample) = samples.last_mut() {
                sample.push(Piece { example: piece.example, from, to });
            }
            room -= taken;
            from = to;
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::dataset::{IGNORED, TokenWriter};

    /// Examples of these lengths; token j of example i is 1000 i + j.
    fn stored(lengths: &[usize]) -> (tempfile::TempDir, Selection) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = TokenWriter::create(folder.path()).unwrap();
        for (i, length) in lengths.iter().enumerate() {
            let input_ids: Vec<u32> = (0..*length).map(|j| (1000 * i + j) as u32).collect();
            let labels = input_ids.iter().map(|id| if id % 3 == 0 { IGNORED } else { i64::from(*id) }).collect();
            writer.push(&TokenizedExample { input_ids, labels }).unwrap();
        }
        (folder, Selection::of(Arc::new(writer.finish().unwrap())))
    }

    const LENGTHS: [usize; 18] = [5, 2, 3, 1, 0, 12, 7, 7, 4, 9, 1, 1, 8, 3, 6, 10, 2, 5];

    fn sequences(samples: &Samples) -> Vec<Vec<Vec<u32>>> {
        let ids = |sample| samples.read(sample).unwrap().into_iter().map(|s| s.input_ids).collect();
        (0..samples.len()).map(ids).collect()
    }

    /// What `_pack_bfd` and `_pack_wrapped` of TRL 1.16.0 make of examples of these lengths: (example, from, to).
    #[test]
    fn examples_are_packed_as_the_reference_packs_them() {
        let (_folder, selection) = stored(&LENGTHS);
        let packed = |packing| {
            let (samples, cut) = selection.clone().packed(packing, 10).unwrap();
            let piece = |ids: Vec<u32>| (ids[0] / 1000, ids[0] % 1000, ids[ids.len() - 1] % 1000 + 1);
            (sequences(&samples).into_iter().map(|s| s.into_iter().map(piece).collect()).collect::<Vec<Vec<_>>>(), cut)
        };
        let mut want = vec![
            vec![(5, 0, 10)],
            vec![(15, 0, 10)],
            vec![(9, 0, 9), (3, 0, 1)],
            vec![(12, 0, 8), (1, 0, 2)],
            vec![(6, 0, 7), (2, 0, 3)],
            vec![(7, 0, 7), (13, 0, 3)],
            vec![(14, 0, 6), (8, 0, 4)],
            vec![(0, 0, 5), (17, 0, 5)],
            vec![(16, 0, 2), (10, 0, 1), (11, 0, 1)],
        ];
        assert_eq!(packed(Packing::BestFit), (want.clone(), 1));
        want[8].insert(0, (5, 10, 12));
        assert_eq!(packed(Packing::BestFitSplit), (want, 0));

        let (samples, _) = selection.clone().packed(Packing::Wrapped, 10).unwrap();
        let rows = sequences(&samples);
        assert!(rows.iter().all(|row| row.len() == 1), "each is one text");
        let ends: Vec<_> = rows.iter().map(|row| (row[0][0], row[0][row[0].len() - 1], row[0].len())).collect();
        let want = [
            (0, 2002, 10),
            (3000, 5008, 10),
            (5009, 6006, 10),
            (7000, 8002, 10),
            (8003, 9008, 10),
            (10_000, 12_007, 10),
            (13_000, 15_000, 10),
            (15_001, 16_000, 10),
            (16_001, 17_004, 6),
        ];
        assert_eq!(ends, want);
    }

    #[test]
    fn packing_neither_loses_nor_doubles_a_token_and_keeps_its_bound() {
        let mut random = crate::random::Random::new(5);
        for (case, packing) in [Packing::BestFit, Packing::BestFitSplit, Packing::Wrapped].into_iter().enumerate() {
            for longest in [1, 7, 64] {
                // More than one window.
                let most = if packing == Packing::BestFit { longest } else { 3 * longest };
                let lengths: Vec<usize> = (0..1500).map(|_| random.below(most as u64 + 1) as usize).collect();
                let (_folder, selection) = stored(&lengths);
                let (samples, cut) = selection.shuffled(case as u64).packed(packing, longest).unwrap();
                assert_eq!(cut, 0);
                let packed = sequences(&samples);
                let sizes: Vec<u32> = packed.iter().map(|sample| sample.concat().len() as u32).collect();
                assert_eq!(samples.lengths().unwrap(), sizes);
                assert!(sizes.iter().all(|size| (1..=longest as u32).contains(size)), "{packing:?} {longest}");
                let mut tokens: Vec<u32> = packed.concat().concat();
                tokens.sort_unstable();
                let all = lengths.iter().enumerate();
                let all: Vec<u32> = all.flat_map(|(i, n)| (0..*n).map(move |j| (1000 * i + j) as u32)).collect();
                assert_eq!(tokens, all, "{packing:?} {longest}");
                if packing == Packing::BestFit {
                    let whole = packed.iter().flatten().all(|s| s.len() == lengths[s[0] as usize / 1000]);
                    assert!(whole, "an example was cut");
                }
            }
        }
    }

    #[test]
    fn examples_are_cut_at_the_end_that_is_asked_for() {
        let (_folder, selection) = stored(&[5, 2, 3]);
        let cut = |truncation| {
            let (samples, cut) = selection.clone().cut(3, truncation).unwrap();
            assert_eq!(cut, 1);
            sequences(&samples).concat()
        };
        assert_eq!(cut(Truncation::KeepStart), [vec![0, 1, 2], vec![1000, 1001], vec![2000, 2001, 2002]]);
        assert_eq!(cut(Truncation::KeepEnd), [vec![2, 3, 4], vec![1000, 1001], vec![2000, 2001, 2002]]);
    }

    #[test]
    fn what_is_split_off_is_the_seeds_and_the_rest_keeps_its_order() {
        let (_folder, all) = stored(&[1; 50]);
        let firsts = |part: Selection| sequences(&part.samples()).concat().concat();
        let (train, held_out) = all.split(10, 7);
        assert_eq!((train.len(), held_out.len()), (40, 10));
        let (train, held_out) = (firsts(train), firsts(held_out));
        assert!(train.is_sorted() && held_out.is_sorted());
        let mut both = [train, held_out.clone()].concat();
        both.sort_unstable();
        assert_eq!(both, (0..50).map(|i| 1000 * i).collect::<Vec<u32>>());
        assert_eq!(held_out, firsts(all.split(10, 7).1));
        assert_ne!(held_out, firsts(all.split(10, 8).1));
        // Labels come along.
        let (_, one) = all.split(1, 0);
        assert_eq!(one.samples().read(0).unwrap()[0].labels.len(), 1);
    }
}
