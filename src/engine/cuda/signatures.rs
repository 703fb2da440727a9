//! Launch arguments against the kernels' parameter lists. The driver takes addresses and neither counts nor
//! types them: without this check a missing argument is garbage and a trailing one is lost, silently.
//!
//! The table is read from `kernels/*.cu` when the program is built (`build/signatures.rs`). A kernel's entry
//! is looked up once, with its function, so a launch pays for one comparison an argument: a few nanoseconds,
//! so the check is always on.

use super::arg::{Arg, ArgKind};
use crate::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/signatures.rs"));

/// A kernel's name and its parameters in order: kind and name.
#[derive(Debug)]
pub struct Signature {
    pub name: &'static str,
    pub parameters: &'static [(ArgKind, &'static str)],
}

/// The signature of this kernel.
///
/// # Errors
/// No file of kernels/ defines it.
pub fn of(name: &str) -> Result<&'static Signature> {
    match SIGNATURES.binary_search_by(|signature| signature.name.cmp(name)) {
        Ok(at) => Ok(&SIGNATURES[at]),
        Err(_) => Err(Error::device(format!("no kernel {name} in kernels/*.cu"))),
    }
}

impl Signature {
    /// Whether a launch may pass these arguments.
    ///
    /// # Errors
    /// Another number of arguments, or one of another kind; the message names the kernel and the argument.
    pub fn check(&self, args: &[Arg]) -> Result<()> {
        let fits = args.len() == self.parameters.len()
            && args.iter().zip(self.parameters).all(|(arg, (kind, _))| arg.kind() == *kind);
        if fits { Ok(()) } else { Err(self.mismatch(args)) }
    }

    #[cold]
    fn mismatch(&self, args: &[Arg]) -> Error {
        let name = self.name;
        let mut pairs = args.iter().zip(self.parameters).enumerate();
        let other = pairs.find(|(_, (arg, (kind, _)))| arg.kind() != *kind);
        Error::device(match other {
            Some((at, (arg, (kind, parameter)))) => format!(
                "kernel {name} takes {kind:?} as argument {at}, `{parameter}`; the launch passes {:?}",
                arg.kind()
            ),
            None => format!(
                "kernel {name} takes {} arguments; the launch passes {}",
                self.parameters.len(),
                args.len()
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The arguments of `name` as its signature has them.
    fn right(name: &str) -> Vec<Arg> {
        let argument = |(kind, _): &(ArgKind, &str)| match kind {
            ArgKind::Ptr => Arg::Ptr(64),
            ArgKind::U32 => Arg::U32(1),
            ArgKind::U64 => Arg::U64(1),
            ArgKind::F32 => Arg::F32(1.0),
            ArgKind::F64 => Arg::F64(1.0),
        };
        of(name).unwrap().parameters.iter().map(argument).collect()
    }

    #[track_caller]
    fn refused(name: &str, args: &[Arg], words: &[&str]) {
        let error = of(name).unwrap().check(args).unwrap_err().to_string();
        for word in words.iter().chain(&[name]) {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }

    #[test]
    fn wrong_launches_are_refused_by_name() {
        for Signature { name, parameters } in SIGNATURES {
            let args = right(name);
            of(name).unwrap().check(&args).unwrap();
            let (taken, passed) = (parameters.len(), parameters.len() - 1);
            refused(
                name,
                &args[..passed],
                &[&format!("takes {taken} arguments"), &format!("passes {passed}")],
            );
            for trailing in [Arg::U32(0), Arg::Ptr(0)] {
                let more = [&args[..], &[trailing]].concat();
                refused(
                    name,
                    &more,
                    &[&format!("takes {taken} arguments"), &format!("passes {}", taken + 1)],
                );
            }
        }
    }

    #[test]
    fn an_argument_of_another_kind_is_refused_by_name() {
        let swapped = |name: &str, parameter: &str, other: Arg| {
            let mut args = right(name);
            let at = of(name).unwrap().parameters.iter().position(|(_, name)| *name == parameter).unwrap();
            args[at] = other;
            (args, at)
        };
        for (name, parameter, other, words) in [
            ("gelu_bf16", "width", Arg::F32(1.0), ["takes U32", "passes F32"]),
            ("adamw_f32", "norm_sq", Arg::U64(64), ["takes Ptr", "passes U64"]),
            ("adamw_f32", "lr", Arg::U32(1), ["takes F32", "passes U32"]),
            // the bits of a double, which is what launches passed before there was Arg::F64
            ("lamb_direction_bf16", "correction2", Arg::U64(0), ["takes F64", "passes U64"]),
            ("narrow", "values", Arg::U32(1), ["takes U64", "passes U32"]),
            ("narrow", "to", Arg::U64(64), ["takes Ptr", "passes U64"]),
        ] {
            let (args, at) = swapped(name, parameter, other);
            let place = format!("argument {at}, `{parameter}`");
            refused(name, &args, &[words[0], words[1], &place]);
        }
        // two swapped arguments
        let mut args = right("rank_loss_f32");
        args.swap(6, 7);
        refused("rank_loss_f32", &args, &["argument 6, `kind`", "takes U32", "passes F32"]);
    }

    #[test]
    fn an_unknown_kernel_is_an_error_that_names_it() {
        let error = of("gelu_f16").unwrap_err().to_string();
        assert!(error.contains("gelu_f16") && error.contains("kernels/"), "{error}");
    }
}
