//! From PTX text to instructions. Knows what NVRTC emits for this project's kernels; anything else is an
//! error with its line.

use std::collections::HashMap;

use super::instruction::*;

/// A compiled kernel.
pub struct Kernel {
    pub name: String,
    /// Offset and size of each parameter.
    pub params: Vec<(usize, usize)>,
    pub code: Vec<Instruction>,
    pub registers: usize,
    /// Bytes of static shared memory.
    pub shared: usize,
    /// Most threads of a block (`.maxntid`); 0 when not stated.
    pub max_threads: usize,
    pub files: HashMap<u32, String>,
}

/// All kernels of one PTX text.
pub struct Module {
    pub kernels: HashMap<String, Kernel>,
}

type Parsed<T> = Result<T, String>;

impl Module {
    pub fn parse(text: &str) -> Parsed<Self> {
        let text = without_comments(text);
        let mut kernels = HashMap::new();
        let mut at = 0;
        let mut common = Common { files: files(&text), ..Common::default() };
        for (offset, line) in lines(&text) {
            let statement = line.trim_end().trim_end_matches(';');
            if let Some(rest) = statement.strip_prefix(".extern .shared") {
                common.dynamic.push(declaration(rest).ok_or("bad .extern .shared")?.0);
            } else if let Some(rest) = statement.strip_prefix(".shared") {
                common.shared.push(declaration(rest).ok_or("bad .shared")?);
            }
            if offset < at || !line.contains(".entry") {
                continue;
            }
            let (kernel, end) = entry(&text, offset, &common)?;
            kernels.insert(kernel.name.clone(), kernel);
            at = end;
        }
        Ok(Self { kernels })
    }

    /// The kernel of this name.
    #[track_caller]
    pub fn kernel(&self, name: &str) -> &Kernel {
        let mut names: Vec<_> = self.kernels.keys().cloned().collect();
        names.sort();
        self.kernels.get(name).unwrap_or_else(|| panic!("no kernel {name} among {names:?}"))
    }
}

/// Names that all kernels of a text may use.
#[derive(Default)]
struct Common {
    files: HashMap<u32, String>,
    /// Names of dynamic shared memory, which starts after the static.
    dynamic: Vec<String>,
    /// Static shared memory outside of kernels, which several of them use: name, bytes, alignment.
    shared: Vec<(String, usize, usize)>,
}

/// Comments become spaces, so that offsets and lines stay.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        out.push_str(line.split("//").next().unwrap_or_default());
        out.push('\n');
    }
    out
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').scan(0, |at, line| {
        *at += line.len();
        Some((*at - line.len(), line))
    })
}

fn files(text: &str) -> HashMap<u32, String> {
    let entries = text.lines().filter_map(|line| {
        let mut words = line.trim().strip_prefix(".file")?.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let path = words.next()?.trim_matches(|c| c == '"' || c == ',');
        Some((number, path.rsplit('/').next().unwrap_or(path).to_owned()))
    });
    entries.collect()
}

/// `.align 16 .b8 name[128]` or `.u64 .ptr .align 1 name`: name, bytes, alignment.
fn declaration(text: &str) -> Option<(String, usize, usize)> {
    let mut words = text.split_whitespace().peekable();
    let (mut align, mut element) = (0, 1);
    while let Some(word) = words.peek().copied().filter(|word| word.starts_with('.')) {
        words.next();
        match word {
            ".align" => align = words.next()?.parse().ok()?,
            ".param" | ".ptr" | ".global" | ".shared" | ".visible" => {}
            _ => element = Type::parse(&word[1..])?.size(),
        }
    }
    let name = words.next()?;
    let (name, count) = match name.split_once('[') {
        Some((name, count)) => (name, count.trim_end_matches(']').parse().unwrap_or(0)),
        None => (name, 1),
    };
    Some((name.to_owned(), element * count, align.max(element)))
}

/// The end of the group that opens at `open`.
fn closing(text: &str, open: usize, pair: (u8, u8)) -> Parsed<usize> {
    let mut depth = 0;
    for (i, &byte) in text.as_bytes().iter().enumerate().skip(open) {
        depth += i32::from(byte == pair.0) - i32::from(byte == pair.1);
        if depth == 0 && byte == pair.1 {
            return Ok(i);
        }
    }
    Err("a group is not closed".into())
}

fn entry(text: &str, start: usize, common: &Common) -> Parsed<(Kernel, usize)> {
    let name_at = start + text[start..].find(".entry").ok_or("no .entry")? + 6;
    let body = name_at + text[name_at..].find('{').ok_or("an entry without a body")?;
    let end = closing(text, body, (b'{', b'}'))?;
    let open = text[name_at..body].find('(').map(|at| name_at + at);
    let name = text[name_at..open.unwrap_or(body)].split_whitespace().next().unwrap_or_default().to_owned();
    let mut scope = Scope { dynamic: common.dynamic.clone(), ..Scope::default() };
    for (name, bytes, align) in common.shared.iter().filter(|(name, ..)| text[body..end].contains(name)) {
        scope.place(name.clone(), *bytes, *align);
    }
    let mut head = &text[name_at..body];
    if let Some(open) = open {
        let close = closing(text, open, (b'(', b')'))?;
        scope.parameters(&text[open + 1..close])?;
        head = &text[close..body];
    }
    let maximum = head.split(".maxntid").nth(1).map_or(0, |numbers| {
        let line = numbers.lines().next().unwrap_or_default();
        line.split(',').filter_map(|n| n.trim().parse::<usize>().ok()).product()
    });
    let line = text[..body].matches('\n').count() as u32 + 1;
    scope.body(&text[body + 1..end], line).map_err(|e| format!("{name}: {e}"))?;
    let kernel = Kernel {
        name,
        params: scope.sizes,
        code: scope.code,
        registers: scope.registers.len() + scope.ranges.iter().map(|r| r.2 as usize).sum::<usize>(),
        shared: scope.shared_bytes,
        max_threads: maximum,
        files: common.files.clone(),
    };
    Ok((kernel, end))
}

/// Names of one kernel while its body is read.
#[derive(Default)]
struct Scope {
    /// Prefix, first index, count: `%r<40>`.
    ranges: Vec<(String, u32, u32)>,
    registers: HashMap<String, u32>,
    next: u32,
    shared: HashMap<String, usize>,
    shared_bytes: usize,
    /// Names of dynamic shared memory, which starts after the static.
    dynamic: Vec<String>,
    params: HashMap<String, usize>,
    sizes: Vec<(usize, usize)>,
    code: Vec<Instruction>,
    labels: HashMap<String, usize>,
    /// Branches whose label is not known yet: instruction, label.
    open: Vec<(usize, String)>,
    source: (u32, u32),
}

/// Where dynamic shared memory starts: after the static memory, aligned as on the card.
pub fn dynamic_start(shared: usize) -> usize {
    shared.next_multiple_of(16)
}

impl Scope {
    fn parameters(&mut self, text: &str) -> Parsed<()> {
        let mut at = 0usize;
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, bytes, align) = declaration(part).ok_or_else(|| format!("parameter {part}"))?;
            // `.ptr .align n` speaks of what the pointer points to
            let align = if part.contains(".ptr") { bytes } else { align };
            at = at.next_multiple_of(align);
            self.params.insert(name, at);
            self.sizes.push((at, bytes));
            at += bytes;
        }
        Ok(())
    }

    fn body(&mut self, text: &str, first_line: u32) -> Parsed<()> {
        let mut line = first_line;
        let mut statement = String::new();
        let mut started = line;
        let mut depth = 0;
        for row in text.split_inclusive('\n') {
            let trimmed = row.trim();
            if statement.trim().is_empty() && (trimmed.starts_with(".loc") || trimmed.starts_with(".pragma"))
            {
                self.location(trimmed);
                line += 1;
                continue;
            }
            for c in row.chars() {
                if statement.trim().is_empty() {
                    started = line;
                }
                match c {
                    ';' => self.statement(&std::mem::take(&mut statement), started)?,
                    ':' if depth == 0 && !statement.trim().contains(char::is_whitespace) => {
                        let label = std::mem::take(&mut statement).trim().to_owned();
                        self.labels.insert(label, self.code.len());
                    }
                    // braces around inline assembly, as opposed to those of an operand
                    '{' | '}' if depth == 0 && statement.trim().is_empty() => {}
                    _ => {
                        depth += i32::from(c == '{' || c == '[') - i32::from(c == '}' || c == ']');
                        statement.push(c);
                    }
                }
            }
            line += 1;
        }
        for (at, label) in std::mem::take(&mut self.open) {
            let target = *self.labels.get(&label).ok_or_else(|| format!("label {label} is nowhere"))?;
            self.code[at].op = Op::Branch(target);
        }
        Ok(())
    }

    fn location(&mut self, row: &str) {
        let mut numbers = row.split(|c: char| c.is_whitespace() || c == ',').filter_map(|w| w.parse().ok());
        if let (Some(file), Some(line)) = (numbers.next(), numbers.next())
            && line > 0
        {
            self.source = (file, line);
        }
    }

    fn statement(&mut self, text: &str, line: u32) -> Parsed<()> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(());
        }
        if let Some(rest) = text.strip_prefix(".reg") {
            return self.declare_registers(rest);
        }
        if let Some(rest) = text.strip_prefix(".shared") {
            let (name, bytes, align) = declaration(rest).ok_or_else(|| format!("line {line}: {text}"))?;
            self.place(name, bytes, align);
            return Ok(());
        }
        self.instruction(text, line).map_err(|e| format!("line {line}: {e} in `{text}`"))
    }

    /// Gives a static shared variable its place.
    fn place(&mut self, name: String, bytes: usize, align: usize) {
        let at = self.shared_bytes.next_multiple_of(align);
        self.shared.insert(name, at);
        self.shared_bytes = at + bytes;
    }

    fn declare_registers(&mut self, text: &str) -> Parsed<()> {
        let (_, names) = text.trim().split_once(char::is_whitespace).ok_or("a .reg without a name")?;
        for name in names.split(',').map(str::trim) {
            match name.split_once('<') {
                Some((prefix, count)) => {
                    let count =
                        count.trim_end_matches('>').parse().map_err(|_| format!("registers {name}"))?;
                    self.ranges.push((prefix.to_owned(), self.next, count));
                    self.next += count;
                }
                None => {
                    self.registers.insert(name.to_owned(), self.next);
                    self.next += 1;
                }
            }
        }
        Ok(())
    }

    fn register(&self, name: &str) -> Option<u32> {
        if let Some(&register) = self.registers.get(name) {
            return Some(register);
        }
        let digits = name.find(|c: char| c.is_ascii_digit())?;
        let number: u32 = name[digits..].parse().ok()?;
        let range =
            self.ranges.iter().find(|(prefix, _, count)| *prefix == name[..digits] && number < *count)?;
        Some(range.1 + number)
    }

    fn instruction(&mut self, text: &str, line: u32) -> Parsed<()> {
        let (guard, text) = match text.strip_prefix('@') {
            None => (None, text),
            Some(rest) => {
                let (name, rest) = rest.split_once(char::is_whitespace).ok_or("a guard alone")?;
                let negated = name.starts_with('!');
                let register = self.register(name.trim_start_matches('!')).ok_or("unknown predicate")?;
                (Some((register, negated)), rest.trim())
            }
        };
        let (mnemonic, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let parts: Vec<&str> = mnemonic.split('.').collect();
        if parts[0] == "bra" {
            self.open.push((self.code.len(), rest.trim().to_owned()));
            return self.push(guard, Op::Nothing, Vec::new(), line);
        }
        let args: Vec<Operand> =
            split(rest).into_iter().map(|part| self.operand(part.trim())).collect::<Parsed<_>>()?;
        let op = super::decode::decode(parts[0], &parts[1..], &args)?;
        self.push(guard, op, args, line)
    }

    fn push(&mut self, guard: Option<(u32, bool)>, op: Op, args: Vec<Operand>, line: u32) -> Parsed<()> {
        self.code.push(Instruction { guard, op, args, line, source: self.source });
        Ok(())
    }

    fn operand(&self, text: &str) -> Parsed<Operand> {
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            return self.address(inner.trim());
        }
        if let Some(inner) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            let parts = split(inner).into_iter().map(|part| self.operand(part.trim()));
            return Ok(Operand::Vector(parts.collect::<Parsed<_>>()?));
        }
        if let Some((first, second)) = text.split_once('|') {
            return Ok(Operand::Pair(Box::new(self.operand(first)?), Box::new(self.operand(second)?)));
        }
        if let Some(rest) = text.strip_prefix('!') {
            return Ok(Operand::Not(self.register(rest).ok_or_else(|| format!("register {rest}"))?));
        }
        if text == "_" {
            return Ok(Operand::Nothing);
        }
        if let Some(special) = special(text) {
            return Ok(Operand::Special(special));
        }
        if let Some(register) = self.register(text) {
            return Ok(Operand::Register(register));
        }
        if let Some(&offset) = self.shared.get(text) {
            return Ok(Operand::Immediate(offset as u64));
        }
        if self.dynamic.iter().any(|name| name == text) {
            return Ok(Operand::Immediate(dynamic_start(self.shared_bytes) as u64));
        }
        immediate(text).map(Operand::Immediate).ok_or_else(|| format!("operand {text}"))
    }

    fn address(&self, text: &str) -> Parsed<Operand> {
        let (base, offset) = match text.rsplit_once('+') {
            Some((base, offset)) => {
                (base.trim(), offset.trim().parse().map_err(|_| format!("offset {text}"))?)
            }
            None => (text, 0i64),
        };
        if let Some(&at) = self.params.get(base) {
            return Ok(Operand::Parameter(at + offset as usize));
        }
        Ok(Operand::Address(Box::new(self.operand(base)?), offset))
    }
}

/// Parts between commas that are not inside brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        parts.push(&text[start..]);
    }
    parts
}

fn special(text: &str) -> Option<Special> {
    let axis = |name: &str| ["x", "y", "z"].iter().position(|&axis| axis == name);
    let (name, part) = text.strip_prefix('%')?.split_once('.').unwrap_or((&text[1..], ""));
    Some(match name {
        "tid" => Special::Thread(axis(part)?),
        "ntid" => Special::Threads(axis(part)?),
        "ctaid" => Special::Block(axis(part)?),
        "nctaid" => Special::Blocks(axis(part)?),
        "laneid" => Special::Lane,
        _ => return None,
    })
}

fn immediate(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0f").filter(|hex| hex.len() == 8) {
        return u32::from_str_radix(hex, 16).ok().map(u64::from);
    }
    if let Some(hex) = text.strip_prefix("0d").filter(|hex| hex.len() == 16) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let digits = digits.trim_end_matches('U');
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}
