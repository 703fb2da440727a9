//! The table that launches are checked against (`build/signatures.rs`) agrees with the kernels' compilers,
//! and a signature that it cannot read stops the build.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ctune_dist::engine::cuda::{Cuda, Settings};

use crate::softgpu;

#[path = "../../build/signatures.rs"]
mod build;

fn kernels() -> Vec<(String, String)> {
    let folder = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    let sources = paths.filter(|path| path.extension().is_some_and(|e| e == "cu"));
    sources
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// Bytes of an argument of this kind, and whether it is a pointer.
fn size(kind: &str) -> (u32, bool) {
    match kind {
        "Ptr" => (8, true),
        "U64" | "F64" => (8, false),
        "U32" | "F32" => (4, false),
        other => panic!("kind {other}"),
    }
}

#[test]
fn every_kernel_of_the_software_device_has_its_signature() {
    softgpu::load();
    let cache = tempfile::tempdir().unwrap();
    let settings = Settings { kernel_cache: Some(cache.path().to_owned()), ..Settings::default() };
    drop(Cuda::<f32>::new(0, settings).unwrap());
    let images = fs::read_dir(cache.path()).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    let compiled: BTreeMap<_, _> = images.flat_map(|image| softgpu::described(&image)).collect();
    let mut read = BTreeMap::new();
    for (file, text) in kernels() {
        for build::Signature { name, parameters } in build::signatures(&text).unwrap() {
            let sizes: Vec<_> = parameters.iter().map(|(kind, _)| size(kind)).collect();
            assert!(read.insert(name, sizes).is_none(), "{file}");
        }
    }
    assert!(compiled.len() > 70, "only {} kernels were compiled", compiled.len());
    assert_eq!(read, compiled);
}

#[test]
fn kinds_and_names_are_read_through_macros() {
    let source = r#"
        #pragma once
        #include "common.cuh" // a comment
        constexpr int BLOCK = 256; /* extern "C" __global__ void not_me(int x) */
        #define ONE(T, TYPE, D) \
            extern "C" __global__ void __launch_bounds__(BLOCK, D > 24 ? 2 : (3)) one_d##D##_##TYPE( \
                const T* __restrict__ x, uint32_t n, float by, \
                uint64_t many, double exact, float2* out) { body<T>(x, "ONE(", n); }
        #define BOTH(D) ONE(float, f32, D) ONE(bf16, bf16, D)
        BOTH(32)
        extern "C" __global__ void plain() {}
    "#;
    let found = build::signatures(source).unwrap();
    let names: Vec<_> = found.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["one_d32_f32", "one_d32_bf16", "plain"]);
    let expected =
        [("Ptr", "x"), ("U32", "n"), ("F32", "by"), ("U64", "many"), ("F64", "exact"), ("Ptr", "out")];
    for one in &found[..2] {
        assert_eq!(one.parameters, expected.map(|(kind, name)| (kind, name.to_owned())));
    }
    assert!(found[2].parameters.is_empty());
}

#[test]
fn a_signature_that_cannot_be_read_stops_the_build() {
    let kernel = |parameters: &str| format!("extern \"C\" __global__ void k({parameters}) {{}}");
    for (source, words) in [
        (kernel("int n"), &["kernel k", "`int n`", "uint32_t"][..]),
        (kernel("Counts counts"), &["kernel k", "`Counts counts`"]),
        (kernel("const float& x"), &["kernel k", "`const float & x`"]),
        (kernel("float**  x"), &["kernel k", "float * * x"]),
        (kernel("uint32_t n = 1"), &["kernel k", "uint32_t n = 1"]),
        (kernel("float* x,"), &["kernel k", "empty parameter"]),
        ("__global__ void k(float* x) {}".into(), &["without extern \"C\""]),
        ("extern \"C\" __global__ int k(float* x) {}".into(), &["`void` expected", "`int`"]),
        ("extern \"C\" __global__ void k(float* x".into(), &["file ends"]),
        ("#define K(T) extern\nK(float, f32)".into(), &["macro K takes 1 arguments, 2 are given"]),
        ("#define K(T, ...) extern".into(), &["macro K", "`...`"]),
        ("#define K 1\n#define K 2".into(), &["macro K is defined twice"]),
        (format!("#ifdef FAST\n{}\n#endif", kernel("")), &["#ifdef FAST"]),
        ("void host() {}".into(), &["no kernel found"]),
    ] {
        let error = build::table(&[("odd.cu".into(), source)]).unwrap_err();
        for word in words.iter().chain(&["kernels/odd.cu: "]) {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
    let twice = ["a.cu", "b.cu"].map(|file| (file.to_owned(), kernel("")));
    assert_eq!(build::table(&twice).unwrap_err(), "kernels/*.cu: k is defined twice");
}
