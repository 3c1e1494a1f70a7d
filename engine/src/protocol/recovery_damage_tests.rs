//! Damage, enumerated: which bit flips and which misdirected blocks are found by reading a log.
//!
//! A change to one batch needs that batch read again and no other: the reading goes on from the
//! state in front of it, which is what the whole log's reading would have there. That both come to
//! the same result, to the last field, is shown over every bit of a small log.

use super::*;
use std::collections::HashSet;
use std::fmt::Debug;

/// `SplitMix64`: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let words = (0..n.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(n).collect()
    }
}

/// A log in memory, and what recovery knows in front of each of its batches.
struct Log {
    memory: Memory,
    facts: Facts,
    /// In front of each batch, and at the end.
    before: Vec<Recovered>,
}

impl Log {
    /// A log of one term with a batch for each entry: so many blocks, full up to a few bytes. The
    /// writer's device is two batches behind.
    fn new(shard: ShardId, blocks: &[usize], random: &mut Random) -> Self {
        let mut bytes = Vec::with_capacity(blocks.iter().sum::<usize>() * BLOCK);
        let mut end = LogEnd::default();
        let mut starts = vec![0; 2];
        for n in blocks {
            starts.push(end.lsn.0);
            let mut left = n * BLOCK - batch::HEADER - random.below(60);
            let mut b = BatchBuilder::new(vec![0; n * BLOCK]);
            while left >= 64 {
                let payload = (64 + random.below(3000)).min(left) - towline_wire::record::HEADER;
                b.push(&random.bytes(payload));
                left -= towline_wire::record::encoded_len(payload).min(left);
            }
            let (count, durable) = (b.count(), Lsn(starts[starts.len() - 3]));
            let sealed = b.close(BatchFields {
                system: SYSTEM,
                shard,
                term: Term(3),
                lsn: end.lsn,
                first_seq: end.next_seq,
                record_count: 0,
                timestamp_us: random.next() >> 14,
                prev_chain: end.chain,
                durable_lsn: durable,
                commit_lsn: durable,
            });
            assert_eq!(sealed.disk_len, n * BLOCK);
            bytes.extend_from_slice(&sealed.buf);
            let next_seq = Seq(end.next_seq.0 + u64::from(count));
            end = LogEnd { lsn: Lsn(bytes.len() as u64), chain: sealed.chain, next_seq, last_term: Term(3) };
        }
        let facts = Facts { shard, in_flight_bytes_max: 64 * BLOCK as u64, ..facts() };
        let mut log = Self { memory: Memory(bytes), facts, before: vec![Recovered::default()] };
        loop {
            let mut out = log.before.last().unwrap().clone();
            match read_on(&mut log.memory, &facts, &mut out, |_| ControlFlow::Break(())).unwrap() {
                ControlFlow::Break(()) => log.before.push(out),
                ControlFlow::Continue(()) => break,
            }
        }
        assert_eq!((log.batches(), log.before.last().unwrap().end), (blocks.len(), end));
        log
    }

    fn batches(&self) -> usize {
        self.before.len() - 1
    }

    fn start(&self, n: usize) -> usize {
        self.before[n].end.lsn.0 as usize
    }

    fn bytes_of(&self, n: usize) -> std::ops::Range<usize> {
        self.start(n)..self.start(n + 1)
    }

    fn end(&self) -> Lsn {
        self.before.last().unwrap().end.lsn
    }

    /// The batch that holds a byte.
    fn batch_at(&self, at: usize) -> usize {
        self.before.partition_point(|b| b.end.lsn.0 as usize <= at) - 1
    }

    /// What the superblock says once all of it was durable.
    fn vouched(&self) -> Facts {
        Facts { commit: self.end(), ..self.facts }
    }

    /// Reads on from the `n`-th batch, until `more` batches were taken for whole.
    fn read_from(&mut self, n: usize, facts: &Facts, mut more: usize) -> Verdict {
        let mut out = self.before[n].clone();
        let result = read_on(&mut self.memory, facts, &mut out, |_| {
            more -= 1;
            if more == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (out, result.map_err(|e| e.to_string()))
    }

    /// Whether the `n`-th batch, of a log that was durable, is refused as damaged where it starts.
    fn is_found(&mut self, n: usize) -> bool {
        let (facts, at) = (self.vouched(), self.before[n].end.lsn);
        let mut out = self.before[n].clone();
        let result = read_on(&mut self.memory, &facts, &mut out, |_| ControlFlow::Break(()));
        matches!(result, Err(RecoveryError::Damage { at: found, .. }) if found == at)
    }

    fn flip(&mut self, bit: usize) {
        self.memory.0[bit / 8] ^= 1 << (bit % 8);
    }

    fn block(&mut self, n: usize) -> &mut [u8] {
        &mut self.memory.0[n * BLOCK..(n + 1) * BLOCK]
    }
}

type Verdict = (Recovered, Result<ControlFlow<()>, String>);

const FOREVER: usize = usize::MAX;

fn sizes(blocks: usize, random: &mut Random) -> Vec<usize> {
    let mut left = blocks;
    let mut sizes = Vec::new();
    while left > 0 {
        sizes.push((1 + random.below(4)).min(left));
        left -= sizes.last().unwrap();
    }
    sizes
}

fn none<T: Debug>(missed: &[T], of: usize, what: &str) {
    assert!(missed.is_empty(), "{} of {of} {what} went unseen: {:?}", missed.len(), &missed[..missed.len().min(10)]);
}

#[test]
fn reading_one_changed_batch_again_comes_to_what_reading_the_whole_log_comes_to() {
    let mut log = Log::new(ShardId(0), &[1, 2, 1, 1, 2, 1], &mut Random(1));
    let original = log.memory.0.clone();
    // With everything vouched for; with a writer that saw some of it durable; with no witness.
    for facts in [log.vouched(), log.facts, Facts { own_term: Term(2), ..log.facts }] {
        for bit in (0..original.len() * 8).step_by(stride(original.len() * 8)) {
            let n = log.batch_at(bit / 8);
            log.flip(bit);
            let again = log.read_from(n, &facts, FOREVER);
            let mut taken = 0;
            let mut out = Recovered::at(Lsn::ZERO);
            let whole = read_on(&mut log.memory, &facts, &mut out, |view| {
                let at = view.header().lsn().0 as usize;
                // Whatever is accepted is what was written, to the last byte.
                assert_eq!(view.as_bytes(), &original[at..at + view.as_bytes().len()]);
                taken += 1;
                ControlFlow::Continue(())
            });
            assert_eq!((out, whole.map_err(|e| e.to_string())), again, "bit {bit}");
            assert_eq!(taken, n, "exactly what stands in front of bit {bit} is accepted");
            log.flip(bit);
        }
    }
    assert!(log.memory.0 == original);
}

#[test]
#[cfg_attr(miri, ignore = "millions of readings")]
fn every_flipped_bit_of_every_header_and_eight_million_behind_them_are_found() {
    // 32 MiB in batches of up to four blocks, and as much in batches of half a mebibyte.
    let random = &mut Random(2);
    let mut blocks = sizes((32 << 20) / BLOCK, random);
    let gap = blocks.len() / 64;
    (0..64).for_each(|n| blocks.insert(n * (gap + 1), 128));
    let mut log = Log::new(ShardId(0), &blocks, random);
    assert_eq!(log.end(), Lsn(64 << 20));
    let (mut headers, mut payload, mut padding) = (0, 0, 0);
    let mut missed = Vec::new();
    for (n, blocks) in blocks.iter().enumerate() {
        let bytes = log.bytes_of(n);
        let body = BatchHeader::check(&log.memory.0[bytes.clone()]).unwrap().wire_len() + bytes.start;
        let header = bytes.start * 8..(bytes.start + batch::HEADER) * 8;
        // One bit of each word of a small batch; a large one costs more to read again.
        let step = if *blocks < 128 { 4 } else { 1024 };
        let behind = (bytes.start + batch::HEADER..bytes.end).step_by(step);
        let behind = behind.map(|at| at * 8 + random.below(step.min(bytes.end - at) * 8)).collect::<Vec<_>>();
        for bit in header.chain(behind) {
            match bit / 8 {
                at if at < bytes.start + batch::HEADER => headers += 1,
                at if at < body => payload += 1,
                _ => padding += 1,
            }
            log.flip(bit);
            if !log.is_found(n) {
                missed.push(bit);
            }
            log.flip(bit);
            if log.is_found(n) {
                missed.push(bit);
            }
        }
    }
    none(&missed, headers + payload + padding, "flipped bits");
    println!("{headers} bits of headers, {payload} of bodies and {padding} of padding were flipped and found");
    assert_eq!(headers, log.batches() * batch::HEADER * 8);
    assert!(payload >= 8_000_000 && padding > 0);
}

#[test]
fn at_the_end_a_flip_is_cut_like_a_tear_and_what_was_durable_is_refused_instead() {
    let mut log = Log::new(ShardId(0), &[2, 1, 1, 1, 2], &mut Random(3));
    let last = log.batches() - 1;
    let (at, until) = (log.before[last].end.lsn, log.end());
    let vouching = [
        // The superblock's floor is where the last durable batch starts; what is known to be committed.
        Facts { floor: at, ..log.facts },
        Facts { commit: until, ..log.facts },
        Facts { commit: Lsn(at.0 + BLOCK as u64), ..log.facts },
    ];
    let bits = log.bytes_of(last).start * 8..log.bytes_of(last).end * 8;
    for bit in bits.clone().step_by(stride(bits.len())) {
        log.flip(bit);
        // Nothing says that it was durable: the log ends in front of it. If the header still
        // stands, the remnant is named, so that it is overwritten; else nothing there looks like a
        // batch of this log.
        let facts = log.facts;
        let (out, result) = log.read_from(last, &facts, FOREVER);
        assert_eq!((result, out.end), (Ok(ControlFlow::Continue(())), log.before[last].end));
        let remnant = out.tear.as_ref().map(|t| (t.at, t.until));
        let in_header = bit / 8 < at.0 as usize + batch::HEADER;
        assert_eq!(remnant, if in_header { None } else { Some((at, until)) }, "bit {bit}");
        for facts in vouching {
            let e = log.read_from(last, &facts, FOREVER).1.unwrap_err();
            assert!(e.contains(&format!("damage at LSN {at}")), "{e}");
        }
        log.flip(bit);
    }
}

#[test]
fn a_flip_below_what_a_later_header_saw_durable_is_refused_without_the_superblocks_help() {
    let mut log = Log::new(ShardId(0), &[1, 2, 1, 1, 2, 1], &mut Random(4));
    let durable_at_end = BatchHeader::check(&log.memory.0[log.start(5)..]).unwrap().durable_lsn();
    assert_eq!(durable_at_end, log.before[3].end.lsn, "the writer is two batches behind");
    for n in 0..log.batches() {
        let bits = log.bytes_of(n).start * 8..log.bytes_of(n).end * 8;
        for bit in bits.clone().step_by(stride(bits.len())) {
            log.flip(bit);
            let facts = log.facts;
            let (out, result) = log.read_from(n, &facts, FOREVER);
            assert_eq!(result.is_err(), n < 3, "bit {bit} of batch {n}: {result:?}");
            assert_eq!(out.end, log.before[n].end);
            log.flip(bit);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of readings")]
fn each_of_a_thousand_writes_that_is_lost_is_named_or_the_log_ends_in_front_of_it() {
    const WRITES: usize = 1000;
    const SEGMENT: usize = 512 * BLOCK;
    let random = &mut Random(9);
    let blocks: Vec<usize> = (0..WRITES).map(|_| 1 + random.below(4)).collect();
    let mut log = Log::new(ShardId(0), &blocks, random);
    let original = log.memory.0.clone();
    let (mut named, mut cut) = (0, 0);
    for n in 0..WRITES {
        let bytes = log.bytes_of(n);
        // What was there before: zeros, anything, what a segment that is used again had there.
        let mut before = vec![vec![0; bytes.len()], random.bytes(bytes.len())];
        before.extend(bytes.start.checked_sub(SEGMENT).map(|at| original[at..at + bytes.len()].to_vec()));
        for before in before {
            log.memory.0[bytes.clone()].copy_from_slice(&before);
            assert!(log.is_found(n), "write {n} was durable");
            // By what later headers saw, and by nobody's word: then it may be a tear if it lies near the end.
            for facts in [log.facts, Facts { own_term: Term(2), ..log.facts }] {
                let (out, result) = log.read_from(n, &facts, FOREVER);
                assert_eq!(out.end, log.before[n].end, "nothing behind write {n} is taken");
                let is_near = log.end().since(out.end.lsn) <= facts.in_flight_bytes_max;
                let seen_durable = facts.own_term == Term(3) && n + 3 < WRITES;
                assert_eq!(result.is_err(), seen_durable || !is_near, "write {n}: {result:?}");
                match (result, n + 1 < WRITES) {
                    (Err(e), _) => {
                        assert!(e.contains(&format!("damage at LSN {}", out.end.lsn)), "{e}");
                        named += 1;
                    }
                    (Ok(_), more) => {
                        let remnant = out.tear.as_ref().map(|t| (t.at, t.until));
                        assert_eq!(remnant, more.then(|| (out.end.lsn, log.end())), "write {n}");
                        cut += 1;
                    }
                }
            }
            // The whole log's reading comes to the same.
            if n % 100 == 99 {
                let facts = log.facts;
                let again = log.read_from(0, &facts, FOREVER);
                assert_eq!(again, log.read_from(n, &facts, FOREVER));
            }
        }
        log.memory.0[bytes.clone()].copy_from_slice(&original[bytes]);
    }
    println!("{WRITES} writes were lost: {named} times named, {cut} times the log ended in front of it");
    assert!(log.memory.0 == original && named > 4 * WRITES && cut > 0);
}

#[test]
#[cfg_attr(miri, ignore = "half a million readings")]
fn every_two_blocks_of_a_segment_in_each_others_place_are_found() {
    const BLOCKS: usize = 1024;
    let random = &mut Random(5);
    let mut log = Log::new(ShardId(0), &sizes(BLOCKS, random), random);
    let holder: Vec<usize> = (0..BLOCKS).map(|b| log.batch_at(b * BLOCK)).collect();
    // Two blocks with the same bytes could be swapped without any harm: there are none.
    assert_eq!(log.memory.0.chunks(BLOCK).collect::<HashSet<_>>().len(), BLOCKS);
    let (mut pairs, mut missed) = (0, Vec::new());
    for (a, b) in (0..BLOCKS).flat_map(|a| (a + 1..BLOCKS).map(move |b| (a, b))) {
        swap_within(&mut log, a, b);
        // Wherever the reading begins: both are found.
        if !log.is_found(holder[a]) || !log.is_found(holder[b]) {
            missed.push((a, b));
        }
        swap_within(&mut log, a, b);
        pairs += 1;
    }
    none(&missed, pairs, "pairs of blocks");
    println!("{pairs} pairs of blocks of a segment were swapped and found");
    assert!((0..log.batches()).all(|n| !log.is_found(n)) && pairs == BLOCKS * (BLOCKS - 1) / 2);
}

fn swap_within(log: &mut Log, a: usize, b: usize) {
    let (low, high) = log.memory.0.split_at_mut(b * BLOCK);
    low[a * BLOCK..(a + 1) * BLOCK].swap_with_slice(&mut high[..BLOCK]);
}

#[test]
#[cfg_attr(miri, ignore = "a reading takes a minute")]
fn a_whole_batch_in_another_ones_place_is_found_also_where_the_reading_begins() {
    // At the floor nothing is known of what came before: only the batch's own word can tell.
    let mut log = Log::new(ShardId(0), &[2; 40], &mut Random(8));
    let original = log.memory.0.clone();
    let pairs = (1..40).flat_map(|a| (0..40).map(move |b| (a, b))).filter(|(a, b)| a != b);
    for (a, b) in pairs {
        let (from, to) = (log.bytes_of(b), log.start(a));
        log.memory.0.copy_within(from, to);
        let facts = Facts { floor: log.before[a].end.lsn, ..log.facts };
        let e = run(&mut log.memory, &facts).unwrap_err();
        assert!(matches!(e, RecoveryError::Damage { at, .. } if at == facts.floor), "{b} in the place of {a}: {e}");
        log.memory.0.copy_from_slice(&original);
    }
}

#[test]
#[cfg_attr(miri, ignore = "a hundred thousand readings")]
fn blocks_of_other_segments_and_shards_in_each_others_place_are_found() {
    const SEGMENT: usize = 512;
    const BLOCKS: usize = 4 * SEGMENT;
    const PAIRS: usize = 100_000;
    // Four shards with batches of the same sizes at the same LSNs: all that tells them apart is
    // what is written in them.
    let shape = sizes(BLOCKS, &mut Random(6));
    let random = &mut Random(7);
    let mut logs: Vec<Log> = (0..4).map(|s| Log::new(ShardId(s), &shape, random)).collect();
    let (mut pairs, mut headers, mut missed) = (0, 0, Vec::new());
    while pairs < PAIRS {
        let (shard_a, a) = (random.below(4), random.below(BLOCKS));
        let (shard_b, b) = match pairs % 4 {
            // The same place in another shard; the same offset in another segment; anywhere.
            0 => (random.below(4), a),
            1 => (shard_a, random.below(4) * SEGMENT + a % SEGMENT),
            _ => (random.below(4), random.below(BLOCKS)),
        };
        if shard_a == shard_b && a / SEGMENT == b / SEGMENT {
            continue;
        }
        let swap = |logs: &mut [Log]| {
            if shard_a == shard_b {
                return swap_within(&mut logs[shard_a], a.min(b), a.max(b));
            }
            let (low, high) = logs.split_at_mut(shard_a.max(shard_b));
            let (of_low, of_high) = if shard_a < shard_b { (a, b) } else { (b, a) };
            low[shard_a.min(shard_b)].block(of_low).swap_with_slice(high[0].block(of_high));
        };
        swap(&mut logs);
        for (shard, block) in [(shard_a, a), (shard_b, b)] {
            let holder = logs[shard].batch_at(block * BLOCK);
            headers += usize::from(logs[shard].start(holder) == block * BLOCK);
            if !logs[shard].is_found(holder) {
                missed.push((shard_a, a, shard_b, b));
            }
        }
        swap(&mut logs);
        pairs += 1;
    }
    none(&missed, pairs, "pairs of blocks");
    println!("{pairs} pairs of blocks were swapped across segments and shards and found");
    assert!(headers > PAIRS / 2, "whole headers were among them");
    assert!(logs.iter_mut().all(|log| (0..log.batches()).all(|n| !log.is_found(n))));
}
