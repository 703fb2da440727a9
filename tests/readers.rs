//! Every reader of bytes (`fuzz/src/lib.rs` lists them) on good files, on damaged copies of them, and on what
//! fuzzing found. The good files are the fuzz targets' seeds; `CTUNE_FUZZ_SEEDS=DIR` writes them there.

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, clippy::module_inception)]
mod readers;

use std::io::Write;

use ctune_dist::report::{Cell, Results};
use ctune_dist::run::checkpoints::{FORMAT, Identity, State};
use ctune_dist::text::Tokenizer;
use proptest::prelude::*;

use self::readers::{READERS, joined, read};

const SGML: &str = "<DOC>\n<DOCNO> FB-1 </DOCNO>\n<HEADLINE> A &amp; B </HEADLINE>\n<!-- c -->\n<TEXT>\n<F P=1> one</F> 5 < 6 \
                    &blank;x.\n</TEXT>\n</DOC>\n<doc><docno>2</docno>all of it</doc>\n";
const PAGE: &str = "<DOC>\n<DOCNO>GX-1</DOCNO>\n<DOCHDR>\nhttp://x.gov/a.html\nHTTP/1.1 200 OK\n</DOCHDR>\n<html><title>T</title>\
                    <script>if (a<b)</script><p>One<br>two &eacute;<b>three</b><table><tr><td>x</table></html>\n</DOC>\n";
const ROWS: &str = "D1\thttp://x\ttitle\tbody text\nD2\t\t\tb\tc\r\n";

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text).unwrap();
    gzip.finish().unwrap()
}

/// A safetensors file.
fn tensors(names: &[(&str, &[usize])], facts: &[(&str, &str)]) -> Vec<u8> {
    let value = vec![0u8; 4096];
    let views = names.iter().map(|(name, shape)| {
        let bytes = &value[..4 * shape.iter().product::<usize>()];
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let facts = facts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    safetensors::serialize(views, Some(facts)).unwrap()
}

fn checkpoint() -> Vec<u8> {
    let config = r#"{"model_type":"bert","hidden_act":"gelu","vocab_size":4,"hidden_size":2,"num_hidden_layers":1,
        "num_attention_heads":1,"intermediate_size":4,"max_position_embeddings":8,"type_vocab_size":2}"#;
    let names: [(&str, &[usize]); 2] =
        [("embeddings.word_embeddings.weight", &[4, 2]), ("pooler.dense.bias", &[2])];
    joined(&[config.as_bytes(), &tensors(&names, &[])])
}

fn state() -> Vec<u8> {
    let identity = Identity { command: "coarse".into(), data: "0".into(), plan: "seed = 1\n".into() };
    let state = State {
        format: FORMAT,
        identity,
        progress: Default::default(),
        steps: 3,
        value: Some(0.5),
        arena: 8,
        ranks: 1,
        parts: 1,
        program: "0".into(),
        code: "0".into(),
    };
    let state = serde_json::to_vec(&state).unwrap();
    let optimiser = tensors(&[("moment1", &[4]), ("moment2", &[4])], &[("ranges", "[[0,2],[4,6]]")]);
    let fact = |bytes: &[u8]| serde_json::json!({"bytes": bytes.len(), "crc32": crc32fast::hash(bytes)});
    let list = serde_json::json!({"state/state.json": fact(&state),
        "state/optimiser-000-of-001.safetensors": fact(&optimiser)})
    .to_string();
    let done = serde_json::json!({"state/files-000.json": fact(list.as_bytes())}).to_string();
    joined(&[&state, &optimiser, list.as_bytes(), done.as_bytes()])
}

/// Good inputs of the reader of that name.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    match name {
        "topics" => texts(&[
            "301\tfirst query\r\n302\tsecond\n",
            "<top>\n<num> Number: 301\n<title> R&D prices\n<desc> Description:\nd <b\n<narr> Narrative:\nn\n</top>\n",
            "<topics><!-- c --><topic number=\"1\"><query>a &amp; b</query><question>q</question><narrative>n</narrative></topic></topics>",
            "{\"_id\": 7, \"text\": \"a query\", \"metadata\": {}}\n",
        ]),
        "qrels" => texts(&[
            "# c\n301 0 D1 1\n301  Q0 D2\t-1\n302 4.5 D1 2\r\n",
            "query-id\tcorpus-id\tscore\nq1\td1\t2\n",
        ]),
        "runs" => texts(&["1 Q0 a 1 5.5 tag\n1 Q0 b 2 -1e-3 tag\n2 Q0 a 1 inf tag\n", "1\ta\t2\n1\tb\t1\n"]),
        "folds" => texts(&[
            r#"{"s1": {"train_qids": ["1"], "predict": {"dev": [2], "test": ["3", "3"]}}}"#,
            r#"[["1", 2], ["3"], ["4"]]"#,
        ]),
        "clicks" => texts(&[
            "q1\ta query\tD1\thttp://x\nq2\tb\tD2\r\n",
            "qid\tquery\tdid\turl\tlabel\nq1\tq\tD1\tu\tx\n",
        ]),
        "trec" => texts(&[SGML]),
        "trecweb" => texts(&[PAGE]),
        "msmarco_v1" => texts(&[ROWS]),
        "msmarco_v2" => texts(&[
            "{\"docid\": \"m_0\", \"url\": \"u\", \"title\": \"t\\u00e9\", \"headings\": \"h\", \"body\": \"b\"}\n",
        ]),
        "beir" => texts(&[
            "{\"_id\": \"d1\", \"title\": \"t\", \"text\": \"b\", \"metadata\": {\"x\": [1, null]}}\n",
            "{\"_id\": 7, \"text\": \"query\"}\n",
            "query-id\tcorpus-id\tscore\nq1\td1\t2\n",
        ]),
        "jsonl" => {
            texts(&["{\"key\": 1, \"title\": [\"a\", \"b\"], \"text\": \"body\"}\n{\"key\": \"2\"}\n"])
        }
        "tsv" => texts(&["key\twhen\ttext\nd1\t9\tbody\nd2\t8\tmore\n"]),
        "detect" => {
            let files =
                [(0, SGML), (0, PAGE), (0, ROWS), (1, "q1\tq\tD1\tu\n"), (2, "q1\tq\n"), (3, "q1 0 D1 1\n")];
            files.iter().map(|(role, text)| [&[*role], text.as_bytes()].concat()).collect()
        }
        "lookup" => vec![joined(&[b"D1\t0\t0\nx\t0\t9\nD2\t0\t28\n", ROWS.as_bytes()])],
        "gzip" => {
            vec![gzip(b"d1\tbody\n"), [gzip(b"d1\tbody\n"), gzip(b"d2\tmore more more more\n")].concat()]
        }
        "zstd" => vec![zstd::encode_all(&b"d1\tbody\nd2\tmore more more more\n"[..], 1).unwrap()],
        "compress" => {
            let text = "d1\tbody body body\n".repeat(60);
            [(16, usize::MAX), (10, usize::MAX), (12, 40)]
                .iter()
                .map(|&(widest, clear)| crate::corpus::formats::compress(text.as_bytes(), widest, clear))
                .collect()
        }
        // An empty change in each of the directory's files, without and with new checksums; then text as it
        // is.
        "shards" => (0..17)
            .flat_map(|file| [vec![file, 0], vec![file, 1]])
            .chain(["manifest.json", "tokenizer.json"].map(readers::shard_file))
            .collect(),
        "checkpoint" => vec![checkpoint()],
        "state" => vec![state()],
        "config" => texts(&[
            "seed = 3\n[data]\nmax_tokens = 64\nfields = [\"body\"]\n[train]\nsteps = 5\nlr = 1e-3\n[stage.coarse.train]\nlr = 5e-4\n",
            "[[source]]\nrole = \"clicks\"\npath = [\"a\", \"b\"]\ncolumns = { query = \"2\" }\n[prepare.filter]\nlanguages = [\"eng\"]\n",
        ]),
        "tokenizer" => {
            let tokenizer = Tokenizer::train(["some words".to_owned()].into_iter(), 30).unwrap();
            let folder = tempfile::tempdir().unwrap();
            tokenizer.save(folder.path()).unwrap();
            ["tokenizer.json", "vocab.txt"]
                .map(|name| std::fs::read(folder.path().join(name)).unwrap())
                .into()
        }
        "results" => {
            let cell = Cell { arm: "a".into(), all_topics: true, ..Cell::default() };
            vec![serde_json::to_vec(&Results { cells: vec![cell], ..Results::default() }).unwrap()]
        }
        _ => Vec::new(),
    }
}

#[test]
fn every_reader_accepts_its_seeds() {
    let folder = std::env::var_os("CTUNE_FUZZ_SEEDS").map(std::path::PathBuf::from);
    for (name, reader) in READERS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seed");
        for (i, seed) in seeds.iter().enumerate() {
            assert!(reader(seed), "{name} refuses its seed {i}");
            if let Some(folder) = &folder {
                std::fs::create_dir_all(folder.join(name)).unwrap();
                std::fs::write(folder.join(name).join(format!("seed-{i}")), seed).unwrap();
            }
        }
    }
}

/// What happened to a file: bytes replaced, inserted or removed, or everything after a place lost.
#[derive(Clone, Debug)]
enum Harm {
    Replace(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Cut(usize),
    Repeat(usize, usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = any::<usize>;
    let piece = prop_oneof![
        prop::sample::select(vec![
            &b"\t"[..],
            b"\n",
            b"\r\n",
            b"\0",
            b"<",
            b">",
            b"\"",
            b"{",
            b"\xff\xfe",
            b"\xc3",
            b"9999999999999999999",
            b"-1"
        ])
        .prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 1..9)
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Harm::Replace(at, byte)),
        (at(), piece).prop_map(|(at, piece)| Harm::Insert(at, piece)),
        (at(), 1..20usize).prop_map(|(at, length)| Harm::Remove(at, length)),
        at().prop_map(Harm::Cut),
        (at(), 1..40usize).prop_map(|(at, length)| Harm::Repeat(at, length)),
    ]
}

fn harmed(seed: &[u8], harms: &[Harm]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for harm in harms {
        let length = bytes.len();
        let place = |at: usize| if length == 0 { 0 } else { at % length };
        match harm {
            Harm::Replace(at, byte) => bytes[place(*at)..].iter_mut().take(1).for_each(|old| *old = *byte),
            Harm::Insert(at, piece) => drop(bytes.splice(place(*at)..place(*at), piece.iter().copied())),
            Harm::Remove(at, count) => drop(bytes.drain(place(*at)..(place(*at) + count).min(length))),
            Harm::Cut(at) => bytes.truncate(place(*at)),
            Harm::Repeat(at, count) => {
                let piece = bytes[place(*at)..(place(*at) + count).min(length)].to_vec();
                bytes.extend(piece.repeat(3));
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// A file damaged in a few places is read or refused. The readers themselves check their further
    /// promises.
    #[test]
    fn damaged_files_are_read_or_refused(harms in prop::collection::vec(harm(), 1..5), which in any::<usize>()) {
        thread_local!(static SEEDS: Vec<(&'static str, Vec<Vec<u8>>)> = READERS.iter().map(|(name, _)| (*name, seeds(name))).collect());
        SEEDS.with(|all| {
            for (name, seeds) in all {
                read(name, &harmed(&seeds[which % seeds.len()], &harms));
            }
        });
    }

    /// So are arbitrary bytes.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        for (name, _) in READERS {
            read(name, &bytes);
        }
    }
}
