//! One source file to the facts that the rules are about. Tokens come from `proc-macro2`, rustc's own lexer as a
//! library, so strings, comments and nested braces cannot deceive it, and macros are read like other code.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path of names: `crate::corpus::Shards` is `["corpus", "Shards"]`.
pub type Names = Vec<String>;

/// What the rules want to know of a file.
#[derive(Debug, Default)]
pub struct Facts {
    /// From the repository's root: `src/corpus/ids.rs`.
    pub path: String,
    /// The module that the file is.
    pub module: Names,
    pub lines: usize,
    /// The file begins with `//!`.
    pub says_why: bool,
    pub has_unsafe: bool,
    /// A `#[cfg]`, `#[cfg_attr]` or `cfg!` other than `cfg(test)`.
    pub has_cfg: bool,
    /// Names `too_many_arguments`, which only an `allow` does.
    pub many_arguments: bool,
    /// Name and lines of each function.
    pub functions: Vec<(String, usize)>,
    /// Paths that its code outside tests follows, from the crate's root.
    pub paths: Vec<Names>,
    /// Names that it re-exports (`pub use`), and where they come from.
    pub doors: Vec<(String, Names)>,
    /// Macros that it defines, and those that it calls.
    pub macros: Vec<String>,
    pub calls: Vec<String>,
    /// Modules whose macros everyone may call without a path (`#[macro_use]`).
    pub macro_modules: Vec<Names>,
}

/// The module of a file below `src/`.
fn module_of(path: &str) -> Names {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    let inner = inner.strip_suffix(".rs").unwrap_or(inner);
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    if inner == "lib" { Names::new() } else { inner.split('/').map(str::to_owned).collect() }
}

/// Reads a file.
///
/// # Panics
/// If the text is not Rust.
pub fn scan(path: &str, text: &str) -> Facts {
    let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
    let facts = Facts {
        path: path.to_owned(),
        module: module_of(path),
        lines: text.lines().count(),
        says_why: text.starts_with("//!"),
        ..Facts::default()
    };
    let children = children(tokens.clone());
    let module = facts.module.clone();
    let mut scanner = Scanner { facts, children };
    scanner.walk(tokens, &module, false);
    scanner.facts
}

/// Names of the modules that a file declares: `mod name;`.
fn children(tokens: TokenStream) -> Names {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let declared = tokens.windows(3).filter(|three| is_word(&three[0], "mod") && is_mark(&three[2], ';'));
    declared.map(|three| three[1].to_string()).collect()
}

struct Scanner {
    facts: Facts,
    children: Names,
}

impl Scanner {
    /// Reads the tokens of one level; `module` is where relative paths start.
    fn walk(&mut self, tokens: TokenStream, module: &[String], in_tests: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        // Tokens before this place belong to an item that only tests have.
        let mut tests_until = 0;
        let mut at = 0;
        while at < tokens.len() {
            let tests = in_tests || at < tests_until;
            let rest = &tokens[at..];
            if let Some((attribute, length)) = attribute(rest) {
                if attribute.to_string() == "macro_use"
                    && let Some([_, name, _]) =
                        rest[length..].windows(3).find(|three| is_word(&three[0], "mod"))
                {
                    self.facts.macro_modules.push(vec![name.to_string()]);
                }
                if self.attribute(attribute) {
                    tests_until = at + length + item_length(&rest[length..]);
                }
                at += length;
            } else if is_word(&rest[0], "use") {
                let length = rest.iter().position(|token| is_mark(token, ';')).unwrap_or(rest.len());
                self.imports(&rest[1..length], module, is_public(&tokens[..at]), tests);
                at += length;
            } else if let [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body), ..] = rest
                && word == "mod"
            {
                let inner: Names = module.iter().cloned().chain([name.to_string()]).collect();
                self.walk(body.stream(), &inner, tests);
                at += 3;
            } else if let [word, TokenTree::Group(_), ..] = rest
                && is_word(word, "pub")
            {
                // `pub(in crate::corpus)` names a place and needs nothing of it.
                at += 2;
            } else if let TokenTree::Group(group) = &rest[0] {
                self.walk(group.stream(), module, tests);
                at += 1;
            } else {
                self.word(rest);
                let length = if continues_path(&tokens[..at]) { 0 } else { self.path(rest, module, tests) };
                at += length.max(1);
            }
        }
    }

    /// Records an attribute; true if it says that what follows is for tests.
    fn attribute(&mut self, content: TokenStream) -> bool {
        let text = content.to_string();
        let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        if words[0] == "doc" {
            return false;
        }
        self.facts.many_arguments |= words.contains(&"too_many_arguments");
        self.facts.has_unsafe |= words[0] == "unsafe";
        let tests = text.replace(' ', "") == "cfg(test)";
        self.facts.has_cfg |= !tests && (words[0] == "cfg" || words[0] == "cfg_attr");
        tests
    }

    /// Records keywords and the names of macros and functions.
    fn word(&mut self, rest: &[TokenTree]) {
        match rest {
            [TokenTree::Ident(word), ..] if word == "unsafe" => self.facts.has_unsafe = true,
            [TokenTree::Ident(word), mark, TokenTree::Ident(name), ..]
                if word == "macro_rules" && is_mark(mark, '!') =>
            {
                self.facts.macros.push(name.to_string());
            }
            [TokenTree::Ident(name), mark, TokenTree::Group(_), ..] if is_mark(mark, '!') => {
                self.facts.has_cfg |= name == "cfg";
                self.facts.calls.push(name.to_string());
            }
            [TokenTree::Ident(word), TokenTree::Ident(name), ..] if word == "fn" => {
                let body = rest.iter().take_while(|token| !is_mark(token, ';')).find_map(braces);
                if let Some(body) = body {
                    let lines = body.span_close().end().line - word.span().start().line + 1;
                    self.facts.functions.push((name.to_string(), lines));
                }
            }
            _ => {}
        }
    }

    /// Records a path that begins here; returns its length in tokens, or 0 if none does.
    fn path(&mut self, rest: &[TokenTree], module: &[String], tests: bool) -> usize {
        let mut names = Names::new();
        let mut length = 0;
        while let Some(TokenTree::Ident(name)) = rest.get(length) {
            names.push(name.to_string());
            length += 1;
            if !rest.get(length..).is_some_and(is_colons) {
                break;
            }
            length += 2;
        }
        if names.len() < 2 {
            return 0;
        }
        if let Some(path) = self.rooted(&names, module)
            && !tests
        {
            self.facts.paths.push(path);
        }
        length
    }

    /// Records an import: what it names, and which of that is re-exported.
    fn imports(&mut self, tree: &[TokenTree], module: &[String], public: bool, tests: bool) {
        let mut leaves = Vec::new();
        leaves_of(tree, &Names::new(), &mut leaves);
        for (path, name) in leaves {
            let Some(path) = self.rooted(&path, module).filter(|_| !tests) else { continue };
            // What a module re-exports of its own children is a door, not a dependency.
            if !(public && path.len() > module.len() && path.starts_with(module)) {
                self.facts.paths.push(path.clone());
            }
            if public {
                self.facts.doors.push((name, path));
            }
        }
    }

    /// A path as written, from the crate's root; `None` if it leads to another crate.
    fn rooted(&self, names: &[String], module: &[String]) -> Option<Names> {
        let (mut base, mut rest) = (module.to_vec(), names);
        match names[0].as_str() {
            "crate" | "ctune_dist" => (base, rest) = (Names::new(), &names[1..]),
            "self" => rest = &names[1..],
            "super" => {}
            child if self.children.iter().any(|known| known == child) => base = self.facts.module.clone(),
            _ => return None,
        }
        while let Some("super") = rest.first().map(String::as_str) {
            base.pop();
            rest = &rest[1..];
        }
        base.extend(rest.iter().filter(|name| *name != "self").cloned());
        Some(base)
    }
}

/// The content of the attribute that begins here, and its length in tokens.
fn attribute(rest: &[TokenTree]) -> Option<(TokenStream, usize)> {
    if !is_mark(&rest[0], '#') {
        return None;
    }
    let inner = usize::from(rest.get(1).is_some_and(|token| is_mark(token, '!')));
    match rest.get(1 + inner)? {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
            Some((group.stream(), 2 + inner))
        }
        _ => None,
    }
}

/// Tokens of the item that begins here: to its semicolon, or to its braces.
fn item_length(rest: &[TokenTree]) -> usize {
    let is_use = rest.iter().take(3).any(|token| is_word(token, "use"));
    let end = |token: &TokenTree| is_mark(token, ';') || (!is_use && braces(token).is_some());
    rest.iter().position(end).map_or(rest.len(), |at| at + 1)
}

/// The leaves of an import's tree: path, and the name that it has here.
fn leaves_of(tree: &[TokenTree], before: &Names, leaves: &mut Vec<(Names, String)>) {
    for branch in tree.split(|token| is_mark(token, ',')) {
        let mut path = before.clone();
        let mut name = None;
        for (at, token) in branch.iter().enumerate() {
            match token {
                TokenTree::Ident(word) if word == "as" => {
                    name = branch.get(at + 1).map(ToString::to_string);
                    break;
                }
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Punct(mark) if mark.as_char() == '*' => name = Some("*".into()),
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    leaves_of(&inner, &path, leaves);
                    path.clear();
                }
                _ => {}
            }
        }
        if let Some(last) = path.last().cloned().filter(|_| path.len() > before.len() || name.is_some()) {
            leaves.push((path, name.unwrap_or(last)));
        }
    }
}

fn is_public(before: &[TokenTree]) -> bool {
    match before {
        [.., last] if is_word(last, "pub") => true,
        [.., word, TokenTree::Group(_)] => is_word(word, "pub"),
        _ => false,
    }
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_colons(rest: &[TokenTree]) -> bool {
    matches!(rest, [a, b, ..] if is_mark(a, ':') && is_mark(b, ':'))
}

/// Whether a name after these tokens goes on with a path that began before, such as `Self::super_thing`.
fn continues_path(before: &[TokenTree]) -> bool {
    before.len() >= 2 && is_colons(&before[before.len() - 2..])
}

fn braces(token: &TokenTree) -> Option<&proc_macro2::Group> {
    match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group),
        _ => None,
    }
}
