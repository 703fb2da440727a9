//! Instructions as they are executed: operands resolved, types and modifiers decoded once.

/// A PTX type. Untyped `.b32` and the like behave as unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Pred,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F32,
    F64,
    Bf16x2,
}

impl Type {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "pred" => Self::Pred,
            "b8" | "u8" => Self::U8,
            "b16" | "u16" => Self::U16,
            "b32" | "u32" => Self::U32,
            "b64" | "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "bf16x2" => Self::Bf16x2,
            _ => return None,
        })
    }

    /// Bytes in memory.
    pub fn size(self) -> usize {
        match self {
            Self::Pred | Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 => 2,
            Self::U32 | Self::S32 | Self::F32 | Self::Bf16x2 => 4,
            Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }

    pub fn signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub fn float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    /// `bits` as a register of this type holds them: narrow values are extended by sign or by zeros.
    pub fn extend(self, bits: u64) -> u64 {
        match self {
            Self::Pred => bits & 1,
            Self::U8 => bits as u8 as u64,
            Self::U16 => bits as u16 as u64,
            Self::U32 | Self::F32 | Self::Bf16x2 => bits as u32 as u64,
            Self::U64 | Self::S64 | Self::F64 => bits,
            Self::S8 => bits as i8 as i64 as u64,
            Self::S16 => bits as i16 as i64 as u64,
            Self::S32 => bits as i32 as i64 as u64,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Operand {
    Register(u32),
    /// A predicate register, negated.
    Not(u32),
    Immediate(u64),
    Special(Special),
    /// [register or immediate + offset]
    Address(Box<Operand>, i64),
    /// A byte offset into the parameters.
    Parameter(usize),
    Vector(Vec<Operand>),
    /// Two results, as `p|q`.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub enum Special {
    /// 0, 1, 2: x, y, z
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// By address: the window of shared memory, or global memory.
    Generic,
    Global,
    Shared,
    Param,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The same or unordered.
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
    /// Neither is a NaN.
    Num,
    /// One is.
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    /// a * b + c: integers wrap, floats round once.
    Mad,
    MadWide,
    Div,
    Rem,
    Min,
    Max,
    Abs,
    Neg,
    And,
    Or,
    Xor,
    Not,
    Shl,
    Shr,
    Ex2,
    Lg2,
    Rcp,
    Sqrt,
    Rsqrt,
    Tanh,
    Copysign,
    Popc,
    Clz,
    Brev,
    Bfi,
    Bfe,
    Prmt,
    Lop3,
    ShfL,
    ShfR,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rounding {
    #[default]
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    pub flush: bool,
    pub saturate: bool,
    pub rounding: Rounding,
    /// The rounding is to an integer, in a float type (`.rni` and the like).
    pub integral: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    Ballot,
    Any,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    Swap,
}

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Nothing,
    Move(Type),
    /// Between generic addresses and the shared window.
    ToShared,
    FromShared,
    Load(Space, Type),
    Store(Space, Type),
    Atomic(Space, Type, Atomic),
    Alu(Alu, Type, Flags),
    /// Result type (`Pred` for setp), type compared, and how a third operand joins in.
    Set(Type, Type, Compare, Option<Combine>),
    Select(Type),
    Convert(Type, Type, Flags),
    /// Target instruction.
    Branch(usize),
    Exit,
    BlockBarrier,
    WarpBarrier,
    Shuffle(Shuffle),
    Vote(Vote),
    ActiveMask,
    /// m16n8k16, bf16 factors, f32 sums.
    Mma,
    /// x4; transposed or not.
    LoadMatrix(bool),
    /// 16 bytes from global to shared memory.
    CopyAsync,
    CommitCopies,
    /// At most this many groups stay under way.
    WaitCopies(usize),
    Trap,
}

#[derive(Clone, Debug)]
pub struct Instruction {
    /// Predicate register and whether it is negated.
    pub guard: Option<(u32, bool)>,
    pub op: Op,
    pub args: Vec<Operand>,
    /// Line of the PTX text.
    pub line: u32,
    /// Index of the source file and its line.
    pub source: (u32, u32),
}
