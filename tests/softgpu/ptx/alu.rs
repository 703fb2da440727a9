//! Arithmetic of one lane: registers hold bits, types say what they mean.

use half::bf16;

use super::instruction::*;

/// The result's bits. Approximate instructions are computed exactly.
pub fn alu(op: Alu, ty: Type, flags: Flags, a: u64, b: u64, c: u64, d: u64) -> Result<u64, String> {
    match ty {
        Type::F32 => {
            let flush = |bits: u64| f32::from_bits(flushed(bits as u32, flags.flush));
            let value = float32(op, flags, flush(a), flush(b), flush(c))?;
            let value = if flags.saturate { saturated(f64::from(value)) as f32 } else { value };
            Ok(u64::from(flushed(value.to_bits(), flags.flush)))
        }
        Type::F64 => {
            let value = float64(op, f64::from_bits(a), f64::from_bits(b), f64::from_bits(c))?;
            Ok(value.to_bits())
        }
        Type::Bf16x2 => Err(format!("{op:?} of bf16x2")),
        _ => integer(op, ty, a, b, c, d),
    }
}

fn flushed(bits: u32, flush: bool) -> u32 {
    if flush && bits & 0x7F80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// Into 0..1; a NaN becomes 0.
fn saturated(x: f64) -> f64 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

fn float32(op: Alu, flags: Flags, x: f32, y: f32, z: f32) -> Result<f32, String> {
    let wide = |value: f64, rest: f64| round_to_f32(value, rest, flags.rounding);
    let (p, q, r) = (f64::from(x), f64::from(y), f64::from(z));
    Ok(match op {
        Alu::Add | Alu::Sub => {
            let q = if op == Alu::Sub { -q } else { q };
            let (sum, rest) = two_sum(p, q);
            wide(sum, rest)
        }
        Alu::Mul => wide(p * q, 0.0), // 48 bits: exact
        Alu::Mad if flags.rounding == Rounding::Nearest => x.mul_add(y, z),
        Alu::Mad => {
            let (sum, rest) = two_sum(p * q, r);
            wide(sum, rest)
        }
        Alu::Div => x / y,
        Alu::Min => x.min(y),
        Alu::Max => x.max(y),
        Alu::Abs => x.abs(),
        Alu::Neg => -x,
        Alu::Ex2 => p.exp2() as f32,
        Alu::Lg2 => p.log2() as f32,
        Alu::Rcp => 1.0 / x,
        Alu::Sqrt => x.sqrt(),
        Alu::Rsqrt => p.sqrt().recip() as f32,
        Alu::Tanh => p.tanh() as f32,
        Alu::Copysign => y.copysign(x),
        _ => return Err(format!("{op:?} of f32")),
    })
}

/// a + b and what its rounding lost (Knuth).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let back = sum - a;
    (sum, (a - (sum - back)) + (b - back))
}

/// `value + rest` (rest below value's last bit) rounded once.
fn round_to_f32(value: f64, rest: f64, rounding: Rounding) -> f32 {
    let near = value as f32;
    if !near.is_finite() && value.is_finite() || value.is_nan() || near.is_infinite() {
        return near;
    }
    let wide = f64::from(near);
    let above = wide > value || (wide == value && rest < 0.0);
    let below = wide < value || (wide == value && rest > 0.0);
    match rounding {
        Rounding::Nearest => near,
        Rounding::Down if above => near.next_down(),
        Rounding::Up if below => near.next_up(),
        Rounding::Zero if above && value > 0.0 => near.next_down(),
        Rounding::Zero if below && value < 0.0 => near.next_up(),
        _ => near,
    }
}

fn float64(op: Alu, x: f64, y: f64, z: f64) -> Result<f64, String> {
    Ok(match op {
        Alu::Add => x + y,
        Alu::Sub => x - y,
        Alu::Mul => x * y,
        Alu::Mad => x.mul_add(y, z),
        Alu::Div => x / y,
        Alu::Min => x.min(y),
        Alu::Max => x.max(y),
        Alu::Abs => x.abs(),
        Alu::Neg => -x,
        Alu::Rcp => 1.0 / x,
        Alu::Sqrt => x.sqrt(),
        Alu::Rsqrt => x.sqrt().recip(),
        Alu::Copysign => y.copysign(x),
        _ => return Err(format!("{op:?} of f64")),
    })
}

fn integer(op: Alu, ty: Type, a: u64, b: u64, c: u64, d: u64) -> Result<u64, String> {
    let (x, y, z) = (ty.extend(a), ty.extend(b), ty.extend(c));
    let bits = 8 * ty.size() as u64;
    let product = || {
        if ty.signed() {
            (i128::from(x as i64) * i128::from(y as i64)) as u128
        } else {
            u128::from(x) * u128::from(y)
        }
    };
    let wide = match op {
        Alu::MulWide => return Ok(product() as u64 & mask(2 * bits)),
        Alu::MadWide => return Ok((product() as u64).wrapping_add(c) & mask(2 * bits)),
        Alu::Popc => return Ok(u64::from(a_bits(a, bits).count_ones())),
        Alu::Clz => return Ok(u64::from(a_bits(a, bits).leading_zeros()) - (64 - bits)),
        Alu::Add => x.wrapping_add(y),
        Alu::Sub => x.wrapping_sub(y),
        Alu::Mul => x.wrapping_mul(y),
        Alu::MulHi => (product() >> bits) as u64,
        Alu::Mad => x.wrapping_mul(y).wrapping_add(z),
        Alu::Div | Alu::Rem if y == 0 => return Err("a division by zero".into()),
        Alu::Div if ty.signed() => (x as i64).wrapping_div(y as i64) as u64,
        Alu::Div => x / y,
        Alu::Rem if ty.signed() => (x as i64).wrapping_rem(y as i64) as u64,
        Alu::Rem => x % y,
        Alu::Min if ty.signed() => (x as i64).min(y as i64) as u64,
        Alu::Min => x.min(y),
        Alu::Max if ty.signed() => (x as i64).max(y as i64) as u64,
        Alu::Max => x.max(y),
        Alu::Abs => (x as i64).wrapping_abs() as u64,
        Alu::Neg => (x as i64).wrapping_neg() as u64,
        Alu::And => x & y,
        Alu::Or => x | y,
        Alu::Xor => x ^ y,
        Alu::Not => !x,
        Alu::Shl => x.checked_shl(b as u32).filter(|_| b as u32 as u64 <= bits).unwrap_or(0),
        Alu::Shr if ty.signed() => ((x as i64) >> (b as u32).min(63)) as u64,
        Alu::Shr => x.checked_shr(b as u32).unwrap_or(0),
        Alu::Brev => a_bits(a, bits).reverse_bits() >> (64 - bits),
        Alu::Bfi => insert(x, y, c, d, bits),
        Alu::Bfe => return Ok(extract(ty, x, b, c, bits)),
        Alu::Prmt => permute(a, b, c),
        Alu::Lop3 => lookup(a, b, c, d),
        Alu::ShfL => funnel(a, b) << (c & 31) >> 32,
        Alu::ShfR => funnel(a, b) >> (c & 31),
        _ => return Err(format!("{op:?} of {ty:?}")),
    };
    Ok(ty.extend(wide))
}

fn mask(bits: u64) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn a_bits(a: u64, bits: u64) -> u64 {
    a & mask(bits)
}

fn funnel(low: u64, high: u64) -> u64 {
    (high << 32) | (low & mask(32))
}

/// `field`'s low `length` bits at `position` of `into`.
fn insert(field: u64, into: u64, position: u64, length: u64, bits: u64) -> u64 {
    let (position, length) = (position & 0xFF, length & 0xFF);
    if position >= bits {
        return into;
    }
    let place = mask(length) << position;
    (into & !place) | ((field << position) & place)
}

fn extract(ty: Type, x: u64, position: u64, length: u64, bits: u64) -> u64 {
    let (position, length) = (position & 0xFF, (length & 0xFF).min(bits));
    let shifted = if position >= bits {
        if ty.signed() && (x as i64) < 0 { u64::MAX } else { 0 }
    } else {
        x >> position
    };
    let value = shifted & mask(length);
    let negative = ty.signed() && length > 0 && length < 64 && value >> (length - 1) & 1 == 1;
    ty.extend(if negative { value | !mask(length) } else { value })
}

/// Bytes of b:a by the four selectors of c.
fn permute(a: u64, b: u64, c: u64) -> u64 {
    let bytes = funnel(a, b);
    (0..4).fold(0, |out, i| {
        let select = c >> (4 * i) & 0xF;
        let byte = bytes >> (8 * (select & 7)) & 0xFF;
        let byte = if select & 8 == 0 {
            byte
        } else if byte & 0x80 == 0 {
            0
        } else {
            0xFF
        };
        out | byte << (8 * i)
    })
}

/// A table of three inputs, bit by bit.
fn lookup(a: u64, b: u64, c: u64, table: u64) -> u64 {
    (0..32).fold(0, |out, i| {
        let index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1);
        out | (table >> index & 1) << i
    })
}

pub fn compare(how: Compare, ty: Type, a: u64, b: u64) -> bool {
    use std::cmp::Ordering::*;
    let order = match ty {
        Type::F32 => f32::from_bits(a as u32).partial_cmp(&f32::from_bits(b as u32)),
        Type::F64 => f64::from_bits(a).partial_cmp(&f64::from_bits(b)),
        _ if ty.signed() => Some((ty.extend(a) as i64).cmp(&(ty.extend(b) as i64))),
        _ => Some(ty.extend(a).cmp(&ty.extend(b))),
    };
    match how {
        Compare::Num => order.is_some(),
        Compare::Nan => order.is_none(),
        Compare::Eq => order == Some(Equal),
        Compare::Ne => matches!(order, Some(Less | Greater)),
        Compare::Lt => order == Some(Less),
        Compare::Le => matches!(order, Some(Less | Equal)),
        Compare::Gt => order == Some(Greater),
        Compare::Ge => matches!(order, Some(Greater | Equal)),
        Compare::EqU => matches!(order, None | Some(Equal)),
        Compare::NeU => order != Some(Equal),
        Compare::LtU => matches!(order, None | Some(Less)),
        Compare::LeU => order != Some(Greater),
        Compare::GtU => matches!(order, None | Some(Greater)),
        Compare::GeU => order != Some(Less),
    }
}

pub fn convert(to: Type, from: Type, flags: Flags, a: u64) -> Result<u64, String> {
    if !from.float() {
        let (x, signed) = (from.extend(a), from.signed());
        return Ok(match to {
            Type::F32 if signed => u64::from((x as i64 as f32).to_bits()),
            Type::F32 => u64::from((x as f32).to_bits()),
            Type::F64 if signed => (x as i64 as f64).to_bits(),
            Type::F64 => (x as f64).to_bits(),
            _ => to.extend(x),
        });
    }
    let x = if from == Type::F32 { f64::from(f32::from_bits(a as u32)) } else { f64::from_bits(a) };
    let whole = match flags.rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    };
    let x = if flags.integral { whole } else { x };
    let x = if flags.saturate && to.float() { saturated(x) } else { x };
    Ok(match to {
        Type::F32 => u64::from(flushed(round_to_f32(x, 0.0, flags.rounding).to_bits(), flags.flush)),
        Type::F64 => x.to_bits(),
        Type::U8 => x as u8 as u64,
        Type::U16 => x as u16 as u64,
        Type::U32 => x as u32 as u64,
        Type::U64 => x as u64,
        Type::S32 => x as i32 as i64 as u64,
        Type::S64 => x as i64 as u64,
        _ => return Err(format!("a conversion from {from:?} to {to:?}")),
    })
}

/// Two f32 in one register of bf16, `high` in the upper half.
pub fn pair(high: u64, low: u64) -> u64 {
    let narrow = |bits: u64| u64::from(bf16::from_f32(f32::from_bits(bits as u32)).to_bits());
    narrow(high) << 16 | narrow(low)
}

pub fn atomic(op: Atomic, ty: Type, old: u64, a: u64, b: u64) -> Result<u64, String> {
    let with = |op| integer(op, ty, old, a, 0, 0);
    match op {
        Atomic::Add if ty.float() => Err("an atomic addition of floats: its order is not fixed".into()),
        Atomic::Add => with(Alu::Add),
        Atomic::Min => with(Alu::Min),
        Atomic::Max => with(Alu::Max),
        Atomic::And => with(Alu::And),
        Atomic::Or => with(Alu::Or),
        Atomic::Xor => with(Alu::Xor),
        Atomic::Exchange => Ok(a),
        Atomic::Swap => Ok(if ty.extend(old) == ty.extend(a) { b } else { old }),
    }
}
