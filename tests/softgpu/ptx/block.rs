//! A launch: blocks run one after another, a block's threads one at a time, each until it must wait.

use std::collections::VecDeque;
use std::fmt;

use super::alu;
use super::instruction::*;
use super::memory::{Device, SHARED_WINDOW, Shared, Who};
use super::parse::{Kernel, dynamic_start};
use super::warp;

/// A kernel argument.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Pointer(u64),
    U32(u32),
    F32(f32),
}

/// One launch.
pub struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub grid: [u32; 3],
    pub block: u32,
    pub dynamic_shared: usize,
    pub args: &'a [Arg],
}

/// What went wrong, and where.
#[derive(Clone, Debug)]
pub struct Fault {
    pub what: String,
    pub kernel: String,
    pub block: [u32; 3],
    pub thread: u32,
    /// `file:line` of the kernel's source.
    pub source: String,
    pub ptx_line: u32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, kernel, block, thread, source, ptx_line } = self;
        write!(f, "{source} ({kernel}, block {block:?}, thread {thread}, PTX line {ptx_line}): {what}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    /// At a warp-wide instruction.
    Warp,
    /// At a barrier of the block.
    Block,
    Done,
}

/// 16 bytes on their way to shared memory: the offset there and the source (`None` for zeros).
#[derive(Clone, Copy)]
pub(super) struct Copy {
    to: u64,
    from: Option<u64>,
}

pub(super) struct Thread {
    pub registers: Vec<u64>,
    pub at: usize,
    pub state: State,
    pub warp_epoch: u32,
    index: u32,
    copies: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
}

/// One block while it runs.
pub(super) struct Block<'a> {
    launch: &'a Launch<'a>,
    params: &'a [u8],
    index: [u32; 3],
    epoch: u32,
    pub shared: Shared,
}

/// A fault: what went wrong, and in which thread.
pub(super) type Found<T> = Result<T, (String, u32)>;

impl Launch<'_> {
    /// Runs every block.
    ///
    /// # Errors
    /// The first fault.
    pub fn run(&self, device: &mut Device) -> Result<(), Fault> {
        let params = self.parameters()?;
        let [x, y, z] = self.grid;
        for i in 0..x * y * z {
            let index = [i % x, i / x % y, i / (x * y)];
            let bytes = dynamic_start(self.kernel.shared) + self.dynamic_shared;
            let block = Block { launch: self, params: &params, index, epoch: 0, shared: Shared::new(bytes) };
            block.run(device)?;
        }
        Ok(())
    }

    fn fault(&self, what: String, index: [u32; 3], thread: u32, at: usize) -> Fault {
        let kernel = self.kernel;
        let instruction = kernel.code.get(at);
        let (file, line) = instruction.map_or((0, 0), |i| i.source);
        let file = kernel.files.get(&file).map_or("?", String::as_str);
        Fault {
            what,
            kernel: kernel.name.clone(),
            block: index,
            thread,
            source: format!("{file}:{line}"),
            ptx_line: instruction.map_or(0, |i| i.line),
        }
    }

    /// The arguments as the kernel reads them.
    fn parameters(&self) -> Result<Vec<u8>, Fault> {
        let kernel = self.kernel;
        let bad = |what: String| Err(self.fault(what, [0; 3], 0, 0));
        if self.args.len() != kernel.params.len() {
            return bad(format!("{} arguments for {} parameters", self.args.len(), kernel.params.len()));
        }
        if kernel.max_threads > 0 && self.block as usize > kernel.max_threads {
            return bad(format!("{} threads, but launch bounds of {}", self.block, kernel.max_threads));
        }
        let mut bytes = vec![0; kernel.params.last().map_or(0, |(at, size)| at + size)];
        for (i, (arg, &(at, size))) in self.args.iter().zip(&kernel.params).enumerate() {
            let value = match *arg {
                Arg::Pointer(p) => p.to_le_bytes().to_vec(),
                Arg::U32(v) => v.to_le_bytes().to_vec(),
                Arg::F32(v) => v.to_le_bytes().to_vec(),
            };
            if value.len() != size {
                return bad(format!("argument {i} has {} bytes, the parameter {size}", value.len()));
            }
            bytes[at..at + size].copy_from_slice(&value);
        }
        Ok(bytes)
    }
}

impl Block<'_> {
    fn run(mut self, device: &mut Device) -> Result<(), Fault> {
        let new = |index| Thread {
            registers: vec![0; self.launch.kernel.registers],
            at: 0,
            state: State::Running,
            warp_epoch: 0,
            index,
            copies: Vec::new(),
            groups: VecDeque::new(),
        };
        let mut threads: Vec<Thread> = (0..self.launch.block).map(new).collect();
        loop {
            for lanes in threads.chunks_mut(32) {
                let found = self.run_warp(lanes, device);
                found.map_err(|(what, lane)| {
                    let thread = &lanes[lane as usize];
                    self.launch.fault(what, self.index, thread.index, thread.at)
                })?;
            }
            if threads.iter().all(|thread| thread.state == State::Done) {
                return Ok(());
            }
            self.pass_barrier(&mut threads)?;
        }
    }

    /// Every warp has run as far as it can: to the barrier, or to its end.
    fn pass_barrier(&mut self, threads: &mut [Thread]) -> Result<(), Fault> {
        for lanes in threads.chunks(32) {
            let waiting = || lanes.iter().filter(|lane| lane.state == State::Block);
            let Some(first) = waiting().next() else { continue };
            let apart = lanes.iter().find(|lane| lane.state == State::Done || lane.at != first.at);
            if let Some(lane) = apart {
                let what = format!(
                    "barrier: thread {} waits here, thread {} of its warp does not",
                    first.index, lane.index
                );
                return Err(self.launch.fault(what, self.index, first.index, first.at));
            }
        }
        self.epoch += 1;
        for thread in threads.iter_mut().filter(|thread| thread.state == State::Block) {
            thread.state = State::Running;
            thread.at += 1;
        }
        Ok(())
    }

    /// Runs the lanes until each is at a barrier of the block or done.
    fn run_warp(&mut self, lanes: &mut [Thread], device: &mut Device) -> Found<()> {
        loop {
            for (lane, thread) in lanes.iter_mut().enumerate() {
                self.run_thread(thread, device).map_err(|what| (what, lane as u32))?;
            }
            if lanes.iter().all(|lane| lane.state != State::Warp) {
                return Ok(());
            }
            warp::step(self, lanes)?;
        }
    }

    fn run_thread(&mut self, thread: &mut Thread, device: &mut Device) -> Result<(), String> {
        let code = &self.launch.kernel.code;
        while thread.state == State::Running {
            let Some(instruction) = code.get(thread.at) else {
                thread.state = State::Done;
                break;
            };
            if let Some((register, negated)) = instruction.guard
                && (thread.registers[register as usize] != 0) == negated
            {
                thread.at += 1;
                continue;
            }
            match instruction.op {
                Op::Branch(target) => thread.at = target,
                Op::Exit => thread.state = State::Done,
                Op::BlockBarrier => thread.state = State::Block,
                Op::WarpBarrier | Op::Shuffle(_) | Op::Vote(_) | Op::Mma | Op::LoadMatrix(_) => {
                    thread.state = State::Warp;
                }
                Op::ActiveMask => {
                    self.set(thread, &instruction.args[0], 0xFFFF_FFFF);
                    thread.at += 1;
                }
                _ => {
                    self.execute(thread, instruction, device)?;
                    thread.at += 1;
                }
            }
        }
        Ok(())
    }

    pub(super) fn who(&self, thread: &Thread) -> Who {
        Who { thread: thread.index, epoch: self.epoch, warp_epoch: thread.warp_epoch }
    }

    pub(super) fn instruction(&self, at: usize) -> &Instruction {
        &self.launch.kernel.code[at]
    }

    pub(super) fn get(&self, thread: &Thread, operand: &Operand) -> u64 {
        match operand {
            Operand::Register(r) => thread.registers[*r as usize],
            Operand::Not(r) => u64::from(thread.registers[*r as usize] == 0),
            Operand::Immediate(value) => *value,
            Operand::Special(special) => u64::from(self.special(thread, *special)),
            Operand::Address(base, offset) => self.get(thread, base).wrapping_add(*offset as u64),
            _ => 0,
        }
    }

    fn special(&self, thread: &Thread, special: Special) -> u32 {
        match special {
            Special::Thread(0) => thread.index,
            Special::Thread(_) => 0,
            Special::Threads(0) => self.launch.block,
            Special::Threads(_) => 1,
            Special::Block(axis) => self.index[axis],
            Special::Blocks(axis) => self.launch.grid[axis],
            Special::Lane => thread.index % 32,
        }
    }

    pub(super) fn set(&self, thread: &mut Thread, operand: &Operand, value: u64) {
        if let Operand::Register(r) = operand {
            thread.registers[*r as usize] = value;
        }
    }

    fn execute(&mut self, thread: &mut Thread, i: &Instruction, device: &mut Device) -> Result<(), String> {
        let a = &i.args;
        let arg = |n: usize| a.get(n).map_or(0, |operand| self.get(thread, operand));
        let value = match i.op {
            Op::Nothing => return Ok(()),
            Op::Trap => return Err("the kernel traps".into()),
            Op::Move(ty) => return self.copy_registers(thread, ty, a),
            Op::ToShared => arg(1).wrapping_sub(SHARED_WINDOW),
            Op::FromShared => arg(1).wrapping_add(SHARED_WINDOW),
            Op::Load(space, ty) => return self.load(thread, space, ty, a, device),
            Op::Store(space, ty) => return self.store(thread, space, ty, a, device),
            Op::Atomic(space, ty, op) => {
                let old = self.atomic(thread, space, ty, op, a, device)?;
                ty.extend(old)
            }
            Op::Alu(op, ty, flags) => alu::alu(op, ty, flags, arg(1), arg(2), arg(3), arg(4))?,
            Op::Set(to, ty, how, combine) => {
                let holds = alu::compare(how, ty, arg(1), arg(2));
                return self.set_predicate(thread, to, holds, combine.map(|c| (c, arg(3) != 0)), &a[0]);
            }
            Op::Select(ty) => ty.extend(if arg(3) != 0 { arg(1) } else { arg(2) }),
            Op::Convert(Type::Bf16x2, _, _) => alu::pair(arg(1), arg(2)),
            Op::Convert(to, from, flags) => alu::convert(to, from, flags, arg(1))?,
            Op::CopyAsync => return self.start_copy(thread, a),
            Op::CommitCopies => {
                let copies = std::mem::take(&mut thread.copies);
                thread.groups.push_back(copies);
                return Ok(());
            }
            Op::WaitCopies(left) => return self.finish_copies(thread, left, device),
            op => return Err(format!("{op:?} cannot be executed by one thread")),
        };
        self.set(thread, &a[0], value);
        Ok(())
    }

    fn set_predicate(
        &self,
        thread: &mut Thread,
        to: Type,
        holds: bool,
        with: Option<(Combine, bool)>,
        result: &Operand,
    ) -> Result<(), String> {
        let join = |holds: bool| match with {
            None => holds,
            Some((Combine::And, other)) => holds && other,
            Some((Combine::Or, other)) => holds || other,
            Some((Combine::Xor, other)) => holds != other,
        };
        let bits = |holds: bool| match (to, holds) {
            (Type::Pred, _) => u64::from(holds),
            (_, false) => 0,
            (Type::F32, true) => u64::from(1f32.to_bits()),
            (_, true) => 0xFFFF_FFFF,
        };
        match result {
            Operand::Pair(p, q) => {
                self.set(thread, p, bits(join(holds)));
                self.set(thread, q, bits(join(!holds)));
            }
            _ => self.set(thread, result, bits(join(holds))),
        }
        Ok(())
    }

    /// A move, or the packing and unpacking of a wider register.
    fn copy_registers(&self, thread: &mut Thread, ty: Type, a: &[Operand]) -> Result<(), String> {
        match (&a[0], &a[1]) {
            (Operand::Vector(parts), from) => {
                let (value, width) = (self.get(thread, from), 8 * ty.size() / parts.len());
                for (n, part) in parts.iter().enumerate() {
                    self.set(thread, part, value >> (n * width) & ((1 << width) - 1));
                }
            }
            (to, Operand::Vector(parts)) => {
                let width = 8 * ty.size() / parts.len();
                let join = |(n, part)| (self.get(thread, part) & ((1 << width) - 1)) << (n * width);
                let value = parts.iter().enumerate().map(join).fold(0, |all, bits| all | bits);
                self.set(thread, to, value);
            }
            (to, from) => {
                let value = ty.extend(self.get(thread, from));
                self.set(thread, to, value);
            }
        }
        Ok(())
    }

    /// Whether an address lies in shared memory, and its offset there or itself.
    fn place(space: Space, address: u64) -> (bool, u64) {
        match space {
            Space::Shared => (true, u64::from(address as u32)),
            Space::Generic if address >= SHARED_WINDOW => (true, address - SHARED_WINDOW),
            _ => (false, address),
        }
    }

    fn aligned(address: u64, len: usize) -> Result<(), String> {
        if address.is_multiple_of(len as u64) {
            return Ok(());
        }
        Err(format!("an access of {len} bytes at {address:#x}, which is not aligned to them"))
    }

    fn load(
        &mut self,
        thread: &mut Thread,
        space: Space,
        ty: Type,
        a: &[Operand],
        device: &mut Device,
    ) -> Result<(), String> {
        let single = std::slice::from_ref(&a[0]);
        let to = if let Operand::Vector(parts) = &a[0] { parts.as_slice() } else { single };
        let (size, len) = (ty.size(), ty.size() * to.len());
        let mut bytes = [0; 32];
        if let Operand::Parameter(at) = a[1] {
            bytes[..len].copy_from_slice(&self.params[at..at + len]);
        } else {
            let (shared, address) = Self::place(space, self.get(thread, &a[1]));
            Self::aligned(address, len)?;
            let who = self.who(thread);
            let from = if shared {
                self.shared.load(address, len, who)?
            } else {
                &*device.at(address, len, "load")?
            };
            bytes[..len].copy_from_slice(from);
        }
        for (n, register) in to.iter().enumerate() {
            self.set(thread, register, ty.extend(word(&bytes[n * size..][..size])));
        }
        Ok(())
    }

    fn store(
        &mut self,
        thread: &mut Thread,
        space: Space,
        ty: Type,
        a: &[Operand],
        device: &mut Device,
    ) -> Result<(), String> {
        let single = std::slice::from_ref(&a[1]);
        let from = if let Operand::Vector(parts) = &a[1] { parts.as_slice() } else { single };
        let (size, len) = (ty.size(), ty.size() * from.len());
        let mut bytes = [0; 32];
        for (n, register) in from.iter().enumerate() {
            bytes[n * size..][..size].copy_from_slice(&self.get(thread, register).to_le_bytes()[..size]);
        }
        let (shared, address) = Self::place(space, self.get(thread, &a[0]));
        Self::aligned(address, len)?;
        if shared {
            return self.shared.store(address, &bytes[..len], self.who(thread));
        }
        device.at(address, len, "store")?.copy_from_slice(&bytes[..len]);
        Ok(())
    }

    fn atomic(
        &mut self,
        thread: &Thread,
        space: Space,
        ty: Type,
        op: Atomic,
        a: &[Operand],
        device: &mut Device,
    ) -> Result<u64, String> {
        // `red` has no result in front
        let first = usize::from(!matches!(a[0], Operand::Address(..)));
        let value = |n: usize| a.get(first + n).map_or(0, |operand| self.get(thread, operand));
        let (shared, address) = Self::place(space, value(0));
        let (x, y, size) = (value(1), value(2), ty.size());
        Self::aligned(address, size)?;
        let place =
            if shared { self.shared.exchange(address, size)? } else { device.at(address, size, "atomic")? };
        let old = word(place);
        let new = alu::atomic(op, ty, old, x, y)?;
        place.copy_from_slice(&new.to_le_bytes()[..size]);
        Ok(old)
    }

    fn start_copy(&mut self, thread: &mut Thread, a: &[Operand]) -> Result<(), String> {
        let to = u64::from(self.get(thread, &a[0]) as u32);
        let from = self.get(thread, &a[1]);
        let bytes = a.get(3).map_or(16, |operand| self.get(thread, operand));
        Self::aligned(to, 16)?;
        let from = match bytes {
            16 => Some(from),
            0 => None,
            n => return Err(format!("an asynchronous copy of {n} of 16 bytes is not known")),
        };
        if let Some(from) = from {
            Self::aligned(from, 16)?;
        }
        self.shared.start_copy(to, 16, self.who(thread))?;
        thread.copies.push(Copy { to, from });
        Ok(())
    }

    fn finish_copies(&mut self, thread: &mut Thread, left: usize, device: &mut Device) -> Result<(), String> {
        while thread.groups.len() > left {
            for copy in thread.groups.pop_front().unwrap_or_default() {
                let mut bytes = [0; 16];
                if let Some(from) = copy.from {
                    bytes.copy_from_slice(device.at(from, 16, "copy")?);
                }
                let who = self.who(thread);
                self.shared.end_copy(copy.to, &bytes, who);
            }
        }
        Ok(())
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(all)
}
