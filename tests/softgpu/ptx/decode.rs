//! From a mnemonic with its modifiers to an operation.

use super::instruction::*;

/// `name` and the `parts` after its dots.
pub fn decode(name: &str, parts: &[&str], args: &[Operand]) -> Result<Op, String> {
    let has = |part: &str| parts.contains(&part);
    let types: Vec<Type> = parts.iter().filter_map(|part| Type::parse(part)).collect();
    let ty = types.first().copied();
    let need = || ty.ok_or_else(|| "an instruction without a type".to_owned());
    let flags = flags(parts);
    Ok(match name {
        "mov" => Op::Move(need()?),
        "cvta" if has("shared") && has("to") => Op::ToShared,
        "cvta" if has("shared") => Op::FromShared,
        "cvta" => Op::Move(need()?), // global addresses are generic addresses
        "ld" => Op::Load(space(parts), need()?),
        "st" => Op::Store(space(parts), need()?),
        "atom" | "red" => Op::Atomic(space(parts), need()?, atomic(parts)?),
        "setp" => Op::Set(Type::Pred, need()?, compare(parts)?, combine(parts)),
        "set" => {
            Op::Set(need()?, *types.get(1).ok_or("set without two types")?, compare(parts)?, combine(parts))
        }
        "selp" => Op::Select(need()?),
        "cvt" => Op::Convert(need()?, *types.get(1).ok_or("cvt without two types")?, flags),
        "ret" | "exit" => Op::Exit,
        "bar" | "barrier" if has("warp") => Op::WarpBarrier,
        "bar" | "barrier" if has("sync") && args.len() == 1 => Op::BlockBarrier,
        "membar" | "fence" | "prefetch" => Op::Nothing,
        "shfl" => Op::Shuffle(shuffle(parts)?),
        "vote" => Op::Vote(vote(parts)?),
        "activemask" => Op::ActiveMask,
        "mma" if has("m16n8k16") && has("bf16") && has("row") && has("col") => Op::Mma,
        "ldmatrix" if has("x4") && has("m8n8") => Op::LoadMatrix(has("trans")),
        "cp" if has("async") => copies(parts, args)?,
        "trap" => Op::Trap,
        _ => Op::Alu(alu(name, parts)?, need()?, flags),
    })
}

fn copies(parts: &[&str], args: &[Operand]) -> Result<Op, String> {
    match (parts.get(1), args) {
        (Some(&"commit_group"), _) => Ok(Op::CommitCopies),
        (Some(&"wait_group"), [Operand::Immediate(n)]) => Ok(Op::WaitCopies(*n as usize)),
        (Some(&"wait_all"), _) => Ok(Op::WaitCopies(0)),
        (Some(&"cg" | &"ca"), [_, _, Operand::Immediate(16), ..]) => Ok(Op::CopyAsync),
        _ => Err("an asynchronous copy that is not known".into()),
    }
}

fn flags(parts: &[&str]) -> Flags {
    let mut flags =
        Flags { flush: parts.contains(&"ftz"), saturate: parts.contains(&"sat"), ..Flags::default() };
    for part in parts {
        let (rounding, integral) = match *part {
            "rn" => (Rounding::Nearest, false),
            "rz" => (Rounding::Zero, false),
            "rm" => (Rounding::Down, false),
            "rp" => (Rounding::Up, false),
            "rni" => (Rounding::Nearest, true),
            "rzi" => (Rounding::Zero, true),
            "rmi" => (Rounding::Down, true),
            "rpi" => (Rounding::Up, true),
            _ => continue,
        };
        (flags.rounding, flags.integral) = (rounding, integral);
    }
    flags
}

fn space(parts: &[&str]) -> Space {
    match parts.iter().find(|part| ["global", "shared", "shared::cta", "param", "const"].contains(part)) {
        Some(&"shared" | &"shared::cta") => Space::Shared,
        Some(&"param") => Space::Param,
        Some(_) => Space::Global,
        None => Space::Generic,
    }
}

fn atomic(parts: &[&str]) -> Result<Atomic, String> {
    let of = |part: &&str| {
        Some(match *part {
            "add" => Atomic::Add,
            "min" => Atomic::Min,
            "max" => Atomic::Max,
            "and" => Atomic::And,
            "or" => Atomic::Or,
            "xor" => Atomic::Xor,
            "exch" => Atomic::Exchange,
            "cas" => Atomic::Swap,
            _ => return None,
        })
    };
    parts.iter().find_map(of).ok_or_else(|| "an atomic operation that is not known".into())
}

fn compare(parts: &[&str]) -> Result<Compare, String> {
    let of = |part: &&str| {
        Some(match *part {
            "eq" => Compare::Eq,
            "ne" => Compare::Ne,
            "lt" | "lo" => Compare::Lt,
            "le" | "ls" => Compare::Le,
            "gt" | "hi" => Compare::Gt,
            "ge" | "hs" => Compare::Ge,
            "equ" => Compare::EqU,
            "neu" => Compare::NeU,
            "ltu" => Compare::LtU,
            "leu" => Compare::LeU,
            "gtu" => Compare::GtU,
            "geu" => Compare::GeU,
            "num" => Compare::Num,
            "nan" => Compare::Nan,
            _ => return None,
        })
    };
    parts.iter().find_map(of).ok_or_else(|| "a comparison that is not known".into())
}

fn combine(parts: &[&str]) -> Option<Combine> {
    parts.iter().find_map(|part| match *part {
        "and" => Some(Combine::And),
        "or" => Some(Combine::Or),
        "xor" => Some(Combine::Xor),
        _ => None,
    })
}

fn shuffle(parts: &[&str]) -> Result<Shuffle, String> {
    let of = |part: &&str| {
        Some(match *part {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Butterfly,
            "idx" => Shuffle::Index,
            _ => return None,
        })
    };
    parts.iter().find_map(of).ok_or_else(|| "a shuffle that is not known".into())
}

fn vote(parts: &[&str]) -> Result<Vote, String> {
    let of = |part: &&str| {
        Some(match *part {
            "ballot" => Vote::Ballot,
            "any" => Vote::Any,
            "all" => Vote::All,
            _ => return None,
        })
    };
    parts.iter().find_map(of).ok_or_else(|| "a vote that is not known".into())
}

fn alu(name: &str, parts: &[&str]) -> Result<Alu, String> {
    let has = |part: &str| parts.contains(&part);
    Ok(match name {
        "add" => Alu::Add,
        "sub" => Alu::Sub,
        "mul" if has("wide") => Alu::MulWide,
        "mul" if has("hi") => Alu::MulHi,
        "mul" => Alu::Mul,
        "mad" if has("wide") => Alu::MadWide,
        "mad" if has("hi") => return Err("mad.hi is not known".into()),
        "mad" | "fma" => Alu::Mad,
        "div" => Alu::Div,
        "rem" => Alu::Rem,
        "min" => Alu::Min,
        "max" => Alu::Max,
        "abs" => Alu::Abs,
        "neg" => Alu::Neg,
        "and" => Alu::And,
        "or" => Alu::Or,
        "xor" => Alu::Xor,
        "not" => Alu::Not,
        "shl" => Alu::Shl,
        "shr" => Alu::Shr,
        "ex2" => Alu::Ex2,
        "lg2" => Alu::Lg2,
        "rcp" => Alu::Rcp,
        "sqrt" => Alu::Sqrt,
        "rsqrt" => Alu::Rsqrt,
        "tanh" => Alu::Tanh,
        "copysign" => Alu::Copysign,
        "popc" => Alu::Popc,
        "clz" => Alu::Clz,
        "brev" => Alu::Brev,
        "bfi" => Alu::Bfi,
        "bfe" => Alu::Bfe,
        "prmt" if parts.len() == 1 => Alu::Prmt,
        "lop3" => Alu::Lop3,
        "shf" if has("l") => Alu::ShfL,
        "shf" if has("r") => Alu::ShfR,
        _ => return Err(format!("instruction {name} is not known")),
    })
}
