//! Partial training: frozen layers and low-rank adapters, on GPUs as on the CPU.

use std::collections::BTreeMap;

use safetensors::SafeTensors;

use super::program::{F32, PLAN, apart, coarse, start};
use crate::program::{Place, assert_done};

/// Name and bytes of every tensor of a saved model.
fn tensors(place: &Place, model: &str) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(place.path(model).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, tensor)| (name, tensor.data().to_vec())).collect()
}

/// Trains from the same model on both devices, at one and two ranks on GPUs; frozen tensors keep their bits.
#[test]
fn frozen_layers_stay_and_the_rest_learns_as_on_the_cpu() {
    let place = Place::with_shards();
    let base = [&PLAN[..], &["--out", "base", "--device", "cpu"]].concat();
    assert_done(&place.run(&base));
    for freeze in [r#"["embeddings", "layer.0"]"#, r#"["layer.1"]"#] {
        let tag = freeze.contains("embeddings");
        let set = format!("train.freeze={freeze}");
        let more = ["--set", "model.path=base/model", "--set", set.as_str()];
        let name = |device: &str| format!("{device}-{tag}");
        let cpu = coarse(&place, 0, &name("cpu"), &[&more[..], &["--device", "cpu"]].concat(), &[]);
        for ranks in [1, 2] {
            let out = format!("{}-{ranks}", name("gpu"));
            let sharded: &[&str] = if ranks == 2 { &["--set", "train.sharding=optimizer"] } else { &[] };
            let gpu = coarse(&place, ranks, &out, &[&more[..], sharded, &F32].concat(), &[]);
            let off = apart(&cpu, &gpu);
            assert!(off < 1e-4, "{freeze} on {ranks} GPU(s): {off:.1e}");
            let (before, after) = (tensors(&place, "base/model"), tensors(&place, &format!("{out}/model")));
            for (tensor, bytes) in &before {
                let embeddings = tensor.contains("embeddings") && tag;
                let frozen = embeddings || tensor.contains(if tag { "layer.0." } else { "layer.1." });
                let same = *bytes == after[tensor];
                assert_eq!(same, frozen, "{freeze}: {tensor}");
            }
        }
    }
}

#[test]
fn adapters_learn_as_on_the_cpu() {
    let place = Place::with_shards();
    let cpu = |args: &[&str]| assert_done(&place.run(args));
    cpu(&["retrieve", "--documents", "documents.tsv", "--topics", "topics.tsv", "--out", "bm25.run"]);
    cpu(&["coarse", "--config", "plan.toml", "--device", "cpu", "--out", "coarse"]);
    let lora =
        "\nlora = { rank = 8, alpha = 8, targets = [\"query\", \"value\", \"intermediate\", \"output\"] }\n";
    let plan = std::fs::read_to_string(place.path("plan.toml")).unwrap();
    place.write("lora.toml", &(plan.trim_end().to_owned() + lora)); // [fine] is the plan's last table
    let fine =
        ["fine", "--config", "lora.toml", "--set", "model.path=coarse/model", "--set", "train.steps=4"];
    let more = ["--set", "train.dropout=0.1", "--set", "train.lr=1e-2", "--out"];
    let run = |out: &str, ranks: usize, device: &[&str]| {
        let args = [&fine[..], &more, &[out], device].concat();
        assert_done(&start(&place, ranks, &args, &[]));
        (1..=3).flat_map(|fold| place.metrics(&format!("{out}/fold-{fold}"))).collect::<Vec<_>>()
    };
    let expected = run("cpu", 0, &["--device", "cpu"]);
    assert_eq!(expected.len(), 12);
    for ranks in [1, 2] {
        let got = run(&format!("gpu-{ranks}"), ranks, &F32);
        for (c, g) in expected.iter().zip(&got) {
            for key in ["rank_loss", "grad_norm"] {
                let (c, g) = (c[key].as_f64().unwrap(), g[key].as_f64().unwrap());
                assert!((c - g).abs() < 1e-4 * c.abs().max(1.0), "{key} on {ranks} GPU(s): {c} and {g}");
            }
        }
    }
    // the base is unchanged except where adapters were merged into it
    let (before, after) = (tensors(&place, "coarse/model"), tensors(&place, "gpu-1/fold-1/model"));
    for (tensor, bytes) in
        before.iter().filter(|(name, _)| name.contains("encoder") || name.contains("embeddings"))
    {
        let merged = ["query.weight", "value.weight", "intermediate.dense.weight"]
            .iter()
            .any(|end| tensor.ends_with(end))
            || (tensor.ends_with("output.dense.weight") && !tensor.contains("attention"));
        assert_eq!(*bytes != after[tensor], merged, "{tensor}");
    }
}
