//! The parameter lists of the GPU kernels, read from `kernels/*.cu` at build time, so that every launch is
//! checked against the kernel that it starts (`src/engine/cuda/signatures.rs`). The driver takes untyped
//! addresses and counts nothing: a missing argument is read from whatever lies behind the last one.
//!
//! Kernels are written by macros (`KERNELS(bf16, bf16)`), so this is a small preprocessor: comments, `#define`
//! with and without parameters, nested uses and `##`. Anything that it does not understand fails the build.
//! The text of included headers is not read: they define no kernels and no macros that signatures use.

use std::collections::HashMap;
use std::iter::Peekable;
use std::slice::Iter;

type Tokens = Vec<String>;
type Outcome<T> = Result<T, String>;

/// A kernel and its parameters in order: kind (a variant of `ArgKind` in the library) and name.
#[derive(Debug, PartialEq, Eq)]
pub struct Signature {
    pub name: String,
    pub parameters: Vec<(&'static str, String)>,
}

struct Macro {
    /// `None`: a macro without a parameter list.
    parameters: Option<Tokens>,
    body: Tokens,
}

/// Rust source of the constant `SIGNATURES`: those of every file (name and text), sorted by kernel.
///
/// # Errors
/// What cannot be read, with its file and kernel; two kernels of one name.
pub fn table(files: &[(String, String)]) -> Outcome<String> {
    let mut all = Vec::new();
    for (file, text) in files {
        let found = signatures(text).map_err(|e| format!("kernels/{file}: {e}"))?;
        if found.is_empty() {
            return Err(format!("kernels/{file}: no kernel found"));
        }
        all.extend(found);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = all.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(format!("kernels/*.cu: {} is defined twice", pair[0].name));
    }
    let lines: String = all
        .iter()
        .map(|Signature { name, parameters }| {
            let list: Vec<String> =
                parameters.iter().map(|(kind, name)| format!("(ArgKind::{kind}, {name:?})")).collect();
            format!("Signature {{ name: {name:?}, parameters: &[{}] }},\n", list.join(", "))
        })
        .collect();
    Ok(format!(
        "/// Every kernel of kernels/*.cu, sorted by name.\npub const SIGNATURES: &[Signature] = &[\n{lines}];\n"
    ))
}

/// The kernels that one file defines, macros expanded, in the order of the file.
///
/// # Errors
/// What cannot be read.
pub fn signatures(source: &str) -> Outcome<Vec<Signature>> {
    let (macros, text) = directives(&without_comments(source))?;
    let tokens = expand(&text, &macros, &mut Vec::new())?;
    let mut found = Vec::new();
    let mut rest = tokens.iter().peekable();
    let mut before: [&str; 2] = ["", ""];
    while let Some(token) = rest.next() {
        if token == "__global__" {
            if before != ["extern", "\"C\""] {
                return Err(
                    "a __global__ function without extern \"C\" in front has no name to launch it by".into(),
                );
            }
            found.push(kernel(&mut rest)?);
            before = ["", ""];
        } else {
            before = [before[1], token];
        }
    }
    Ok(found)
}

/// The signature of the kernel whose tokens after `__global__` these are.
fn kernel(rest: &mut Peekable<Iter<String>>) -> Outcome<Signature> {
    let mut token = next(rest)?;
    if token != "void" {
        return Err(format!("`void` expected after __global__, found `{token}`"));
    }
    token = next(rest)?;
    if token == "__launch_bounds__" {
        open(rest, token)?;
        arguments(rest)?;
        token = next(rest)?;
    }
    if !is_word(token) {
        return Err(format!("a kernel's name expected, found `{token}`"));
    }
    open(rest, token)?;
    let mut parameters = Vec::new();
    for parameter in arguments(rest)? {
        parameters.push(kind_and_name(&parameter).map_err(|e| format!("kernel {token}: {e}"))?);
    }
    Ok(Signature { name: token.to_owned(), parameters })
}

/// `const float* x` -> Ptr, x.
fn kind_and_name(parameter: &[String]) -> Outcome<(&'static str, String)> {
    let unread = || format!("parameter `{}`: its kind is none of {KINDS}", parameter.join(" "));
    let Some((name, kind)) = parameter.split_last() else { return Err("an empty parameter".into()) };
    let kind: Vec<&str> =
        kind.iter().map(String::as_str).filter(|t| !["const", "__restrict__"].contains(t)).collect();
    let kind = match kind.as_slice() {
        ["uint32_t"] => "U32",
        ["uint64_t"] => "U64",
        ["float"] => "F32",
        ["double"] => "F64",
        [of, "*"] if is_word(of) => "Ptr",
        _ => return Err(unread()),
    };
    if !is_word(name) {
        return Err(unread());
    }
    Ok((kind, name.clone()))
}

/// What a launch can pass (`Arg` in src/engine/cuda/launch.rs).
const KINDS: &str = "T*, uint32_t, uint64_t, float, double";

// ---- the preprocessor ----------------------------------------------------------------------------

/// Comments become a space, continued lines one line.
fn without_comments(source: &str) -> String {
    let source = source.replace("\\\n", " ");
    let mut text = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else {
            text.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        text.push(' ');
        rest = &rest[skipped..];
    }
    text
}

/// The macros of a file, and its tokens outside directives.
fn directives(source: &str) -> Outcome<(HashMap<String, Macro>, Tokens)> {
    let mut macros = HashMap::new();
    let mut text = Tokens::new();
    for line in source.lines() {
        let Some(directive) = line.trim_start().strip_prefix('#') else {
            text.extend(tokens(line)?);
            continue;
        };
        let words = tokens(directive)?;
        match words.first().map(String::as_str) {
            Some("include" | "pragma") => {}
            Some("define") => {
                let (name, value) = definition(directive, &words[1..])?;
                if macros.insert(name.clone(), value).is_some() {
                    return Err(format!("macro {name} is defined twice"));
                }
            }
            _ => return Err(format!("`#{}`: only #include, #pragma and #define are read", directive.trim())),
        }
    }
    Ok((macros, text))
}

/// Name and meaning of the macro that `words`, the tokens after `define`, define.
fn definition(directive: &str, words: &[String]) -> Outcome<(String, Macro)> {
    let mut rest = words.iter().peekable();
    let name = next(&mut rest)?.to_owned();
    // A parameter list follows its name without a space.
    let parameters = if directive.contains(&format!("{name}(")) {
        open(&mut rest, &name)?;
        let list: Tokens = arguments(&mut rest)?.into_iter().map(|p| p.concat()).collect();
        if let Some(odd) = list.iter().find(|p| !is_word(p)) {
            return Err(format!("macro {name}: parameter `{odd}` is not a plain name"));
        }
        Some(list)
    } else {
        None
    };
    Ok((name, Macro { parameters, body: rest.cloned().collect() }))
}

/// Words, numbers and strings whole, `##` whole, every other sign by itself.
fn tokens(line: &str) -> Outcome<Tokens> {
    let mut all = Tokens::new();
    let mut rest = line.trim_start();
    while let Some(c) = rest.chars().next() {
        let length = if c == '"' || c == '\'' {
            let quoted = rest[1..].find(c).ok_or_else(|| format!("`{rest}`: a string that does not end"))?;
            quoted + 2
        } else if is_word_part(c) {
            rest.find(|c| !is_word_part(c)).unwrap_or(rest.len())
        } else if rest.starts_with("##") {
            2
        } else {
            c.len_utf8()
        };
        all.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    Ok(all)
}

/// `text` with every macro replaced by its meaning; `within` are the macros under way.
fn expand(text: &[String], macros: &HashMap<String, Macro>, within: &mut Vec<String>) -> Outcome<Tokens> {
    let mut out = Tokens::new();
    let mut rest = text.iter().peekable();
    while let Some(token) = rest.next() {
        let Some(meaning) = macros.get(token).filter(|_| !within.contains(token)) else {
            out.push(token.clone());
            continue;
        };
        let body = match &meaning.parameters {
            None => meaning.body.clone(),
            Some(_) if rest.peek().is_none_or(|t| *t != "(") => {
                out.push(token.clone());
                continue;
            }
            Some(parameters) => {
                open(&mut rest, token)?;
                let given = arguments(&mut rest)?;
                if given.len() != parameters.len() {
                    return Err(format!(
                        "macro {token} takes {} arguments, {} are given",
                        parameters.len(),
                        given.len()
                    ));
                }
                substitute(&meaning.body, parameters, &given)
            }
        };
        within.push(token.clone());
        out.extend(expand(&pasted(body), macros, within)?);
        within.pop();
    }
    Ok(out)
}

fn substitute(body: &[String], parameters: &[String], given: &[Tokens]) -> Tokens {
    let one = |token: &String| match parameters.iter().position(|p| p == token) {
        Some(at) => given[at].clone(),
        None => vec![token.clone()],
    };
    body.iter().flat_map(one).collect()
}

/// `a ## b` -> `ab`.
fn pasted(tokens: Tokens) -> Tokens {
    let mut out = Tokens::new();
    let mut joins = false;
    for token in tokens {
        if token == "##" {
            joins = true;
        } else if let Some(last) = out.last_mut().filter(|_| joins) {
            last.push_str(&token);
            joins = false;
        } else {
            out.push(token);
        }
    }
    out
}

/// The lists between commas up to the bracket that closes, which is read as well.
fn arguments(rest: &mut Peekable<Iter<String>>) -> Outcome<Vec<Tokens>> {
    let mut all = vec![Tokens::new()];
    let mut depth = 0;
    loop {
        let token = next(rest)?;
        match token {
            ")" if depth == 0 => break,
            "," if depth == 0 => {
                all.push(Tokens::new());
                continue;
            }
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if let Some(last) = all.last_mut() {
            last.push(token.to_owned());
        }
    }
    if all.len() == 1 && all[0].is_empty() {
        all.clear();
    }
    Ok(all)
}

fn open(rest: &mut Peekable<Iter<String>>, after: &str) -> Outcome<()> {
    match next(rest)? {
        "(" => Ok(()),
        other => Err(format!("`(` expected after {after}, found `{other}`")),
    }
}

fn next<'a>(rest: &mut Peekable<Iter<'a, String>>) -> Outcome<&'a str> {
    rest.next().map(String::as_str).ok_or_else(|| "the file ends within a definition".into())
}

fn is_word_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(is_word_part)
}
