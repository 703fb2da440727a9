//! What a warp does together: shuffles, votes, matrix loads, tensor-core products. Each needs all the lanes
//! that it names at the same instruction.

use half::bf16;

use super::block::{Block, Found, State, Thread};
use super::instruction::*;

/// Carries out a warp-wide instruction that all its lanes have reached.
pub fn step(block: &mut Block<'_>, lanes: &mut [Thread]) -> Found<()> {
    let waiting: Vec<usize> = (0..lanes.len()).filter(|&l| lanes[l].state == State::Warp).collect();
    for &leader in &waiting {
        let at = lanes[leader].at;
        let here: Vec<usize> = waiting.iter().copied().filter(|&l| lanes[l].at == at).collect();
        let mask = mask(block, &lanes[leader]);
        let named = (0..32).filter(|l| mask >> l & 1 == 1);
        if named.clone().any(|l| !here.contains(&l)) {
            continue;
        }
        let members: Vec<usize> = named.collect();
        if !members.contains(&leader) {
            return Err(("a warp-wide instruction whose mask leaves its own lane out".into(), leader as u32));
        }
        execute(block, lanes, &members)?;
        for &lane in &members {
            lanes[lane].state = State::Running;
            lanes[lane].at += 1;
        }
        return Ok(());
    }
    let first = waiting[0];
    let mask = mask(block, &lanes[first]);
    let absent =
        (0..32).find(|&l| mask >> l & 1 == 1 && (l >= lanes.len() || lanes[l].at != lanes[first].at));
    let absent = absent.map_or("a lane".into(), |l| format!("lane {l}"));
    Err((format!("deadlock: a warp-wide instruction waits for {absent}, which does not come"), first as u32))
}

/// The lanes that the instruction at this thread names.
fn mask(block: &Block<'_>, thread: &Thread) -> u64 {
    let i = block.instruction(thread.at);
    let operand = match i.op {
        Op::Shuffle(_) => i.args.get(4),
        Op::Vote(_) => i.args.get(2),
        Op::WarpBarrier => i.args.first(),
        _ => None, // `.aligned`: all of them
    };
    operand.map_or(0xFFFF_FFFF, |operand| block.get(thread, operand) & 0xFFFF_FFFF)
}

fn execute(block: &mut Block<'_>, lanes: &mut [Thread], members: &[usize]) -> Found<()> {
    let instruction = block.instruction(lanes[members[0]].at).clone();
    match instruction.op {
        Op::WarpBarrier => {
            let epoch = members.iter().map(|&l| lanes[l].warp_epoch).max().unwrap_or(0) + 1;
            for &lane in members {
                lanes[lane].warp_epoch = epoch;
            }
        }
        Op::Shuffle(how) => shuffle(block, lanes, members, how, &instruction.args)?,
        Op::Vote(how) => vote(block, lanes, members, how, &instruction.args),
        Op::LoadMatrix(transposed) => load_matrix(block, lanes, transposed, &instruction.args)?,
        Op::Mma => product(block, lanes, &instruction.args),
        op => return Err((format!("{op:?} is not warp-wide"), members[0] as u32)),
    }
    Ok(())
}

/// PTX ISA, `shfl.sync`: `c` holds the clamp in bits 0..5 and the segment mask in bits 8..13.
fn shuffle(
    block: &Block<'_>,
    lanes: &mut [Thread],
    members: &[usize],
    how: Shuffle,
    args: &[Operand],
) -> Found<()> {
    let values: Vec<u64> = lanes.iter().map(|lane| block.get(lane, &args[1])).collect();
    let (result, in_range) = match &args[0] {
        Operand::Pair(result, predicate) => (&**result, Some(&**predicate)),
        result => (result, None),
    };
    for &l in members {
        let lane = l as i64;
        let (b, c) = (block.get(&lanes[l], &args[2]) as i64 & 31, block.get(&lanes[l], &args[3]) as i64);
        let (clamp, segment) = (c & 31, c >> 8 & 31);
        let last = (lane & segment) | (clamp & !segment);
        let (from, inside) = match how {
            Shuffle::Up => (lane - b, lane - b >= last),
            Shuffle::Down => (lane + b, lane + b <= last),
            Shuffle::Butterfly => (lane ^ b, (lane ^ b) <= last),
            Shuffle::Index => {
                let from = (lane & segment) | (b & !segment);
                (from, from <= last)
            }
        };
        let from = if inside { from as usize } else { l };
        if !members.contains(&from) {
            return Err((format!("lane {l} shuffles from lane {from}, which takes no part"), l as u32));
        }
        block.set(&mut lanes[l], result, values[from] & 0xFFFF_FFFF);
        if let Some(predicate) = in_range {
            block.set(&mut lanes[l], predicate, u64::from(inside));
        }
    }
    Ok(())
}

fn vote(block: &Block<'_>, lanes: &mut [Thread], members: &[usize], how: Vote, args: &[Operand]) {
    let ballot =
        members.iter().filter(|&&l| block.get(&lanes[l], &args[1]) != 0).fold(0u64, |all, l| all | 1 << l);
    let value = match how {
        Vote::Ballot => ballot,
        Vote::Any => u64::from(ballot != 0),
        Vote::All => u64::from(ballot.count_ones() as usize == members.len()),
    };
    for &lane in members {
        block.set(&mut lanes[lane], &args[0], value);
    }
}

/// PTX ISA, `ldmatrix .x4`: lane 8 i + r names row r of matrix i; lane l receives of matrix i the two
/// values at row l / 4, columns 2 (l % 4) and the next; transposed, those of column l / 4.
fn load_matrix(block: &mut Block<'_>, lanes: &mut [Thread], transposed: bool, args: &[Operand]) -> Found<()> {
    let mut rows = [[0u16; 8]; 32];
    for l in 0..32 {
        let at = block.get(&lanes[l], &args[1]) & 0xFFFF_FFFF;
        let who = block.who(&lanes[l]);
        if !at.is_multiple_of(16) {
            return Err((
                format!("a matrix row at {at:#x} of shared memory, which is not 16-byte aligned"),
                l as u32,
            ));
        }
        let bytes = block.shared.load(at, 16, who).map_err(|what| (what, l as u32))?;
        for (value, pair) in rows[l].iter_mut().zip(bytes.chunks_exact(2)) {
            *value = u16::from_le_bytes([pair[0], pair[1]]);
        }
    }
    let Operand::Vector(results) = &args[0] else { return Err(("ldmatrix without four results".into(), 0)) };
    for (l, lane) in lanes.iter_mut().enumerate() {
        let (row, column) = (l / 4, 2 * (l % 4));
        for (i, result) in results.iter().enumerate() {
            let of = |n: usize| {
                if transposed { rows[8 * i + column + n][row] } else { rows[8 * i + row][column + n] }
            };
            block.set(lane, result, u64::from(of(0)) | u64::from(of(1)) << 16);
        }
    }
    Ok(())
}

/// PTX ISA, `mma.m16n8k16` with bf16 factors: with g = lane / 4, t = lane % 4
/// A: a0 (g, 2t), a1 (g + 8, 2t), a2 (g, 2t + 8), a3 (g + 8, 2t + 8), two columns a register;
/// B: b0 (2t, g), b1 (2t + 8, g), two rows a register; C: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
/// Sums are made in f64 and rounded once.
fn product(block: &Block<'_>, lanes: &mut [Thread], args: &[Operand]) {
    let part = |lane: &Thread, arg: usize, n: usize| match &args[arg] {
        Operand::Vector(parts) => block.get(lane, &parts[n]) as u32,
        _ => 0,
    };
    let half = |bits: u32, n: usize| f64::from(bf16::from_bits((bits >> (16 * n)) as u16).to_f32());
    let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
    for (l, lane) in lanes.iter().enumerate() {
        let (g, t) = (l / 4, l % 4);
        for n in 0..2 {
            for r in 0..4 {
                a[g + 8 * (r % 2)][2 * t + n + 8 * (r / 2)] = half(part(lane, 1, r), n);
            }
            for r in 0..2 {
                b[2 * t + n + 8 * r][g] = half(part(lane, 2, r), n);
            }
        }
    }
    let Operand::Vector(results) = &args[0] else { return };
    for (l, lane) in lanes.iter_mut().enumerate() {
        let (g, t) = (l / 4, l % 4);
        let sums: [f32; 4] = std::array::from_fn(|r| {
            let (row, column) = (g + 8 * (r / 2), 2 * t + r % 2);
            let c = f64::from(f32::from_bits(part(lane, 3, r)));
            (c + (0..16).map(|k| a[row][k] * b[k][column]).sum::<f64>()) as f32
        });
        for (result, sum) in results.iter().zip(sums) {
            block.set(lane, result, u64::from(sum.to_bits()));
        }
    }
}
