//! The configs that come with the program: each resolves for every command and says in its head where its
//! files come from. If the real topics and judgements are at hand, it fits them to the last count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ctune_dist::config::Config;
use ctune_dist::ir::folds::read_folds;
use ctune_dist::ir::measures::Measure;
use ctune_dist::ir::qrels::Qrels;
use ctune_dist::ir::run::Run;
use ctune_dist::ir::topics::read_topics;

use crate::skip::shared;

const STAGES: [&str; 5] = ["prepare", "pretrain", "coarse", "fine", "experiment"];

fn configs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 8, "{all:?}");
    all
}

/// Files that a config reads and the program does not make.
fn inputs(config: &Config) -> Vec<PathBuf> {
    let data = &config.data;
    let single = [&data.documents, &data.topics, &data.qrels, &data.run, &data.folds];
    let mut all: Vec<PathBuf> = single.into_iter().flatten().cloned().collect();
    all.extend(config.sources.iter().flat_map(|source| source.path.clone()));
    all.extend(config.prepare.tokenizer.clone());
    all.extend(config.objective.negatives_run.clone());
    all
}

#[test]
fn every_config_resolves_and_says_where_its_files_are_from() {
    for path in configs() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for stage in STAGES {
            let config = Config::load(Some(&path), stage, &[]).unwrap_or_else(|error| panic!("{error}"));
            config.fine.measure.parse::<Measure>().unwrap();
            for measure in &config.experiment.measures {
                measure.parse::<Measure>().unwrap();
            }
            let arms = &config.experiment.arms;
            let names: BTreeSet<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
            assert_eq!(names.len(), arms.len(), "{name}: two arms of one name");
            if let Some(baseline) = config.experiment.baseline.as_deref() {
                assert!(names.contains(baseline), "{name}: {baseline}");
            }
            // Scripts make the files of these; the others explain themselves.
            if ["debian-tiny.toml", "nfcorpus.toml", "single-gpu-debug.toml"].contains(&name) {
                continue;
            }
            let head: String = text.lines().take_while(|line| line.starts_with('#')).collect();
            for input in inputs(&config) {
                let file = input.file_name().unwrap().to_str().unwrap();
                let elsewhere = head.contains("as the head of configs/orcas-bert-base.toml");
                assert!(
                    head.contains(file) || elsewhere,
                    "{name}: its head does not say where {file} is from"
                );
            }
        }
    }
}

/// A config, the files at its paths, and what is in them.
struct Collection {
    config: &'static str,
    topics: (&'static [&'static str], usize),
    /// Topics and judgements.
    qrels: (&'static [&'static str], usize, usize),
    run: (&'static [&'static str], usize),
    /// Training, validation and test topics of each fold.
    folds: (&'static str, &'static [[usize; 3]]),
}

const COLLECTIONS: [Collection; 4] = [
    Collection {
        config: "robust04.toml",
        topics: (&["robust04/topics.robust04.txt"], 250),
        qrels: (&["robust04/qrels.robust2004.txt"], 249, 311_410),
        run: (
            &[
                "robust04/cedr/f1.test.run",
                "robust04/cedr/f2.test.run",
                "robust04/cedr/f3.test.run",
                "robust04/cedr/f4.test.run",
                "robust04/cedr/f5.test.run",
            ],
            250,
        ),
        folds: (
            "robust04/rob04_cedr_folds.json",
            &[[150, 50, 50], [150, 50, 50], [150, 50, 50], [150, 50, 49], [150, 49, 50]],
        ),
    },
    Collection {
        config: "gov2.toml",
        topics: (
            &[
                "gov2/topics.terabyte04.701-750.txt",
                "gov2/topics.terabyte05.751-800.txt",
                "gov2/topics.terabyte06.801-850.txt",
            ],
            150,
        ),
        qrels: (
            &[
                "gov2/qrels.terabyte04.701-750.txt",
                "gov2/qrels.terabyte05.751-800.txt",
                "gov2/qrels.terabyte06.801-850.txt",
            ],
            149,
            135_352,
        ),
        run: (&[], 0),
        // The file pads its lists with duplicates to 50, 50 and 75.
        folds: ("gov2/gov2_maxp_folds.json", &[[34, 41, 75], [41, 75, 34], [75, 34, 41]]),
    },
    Collection {
        config: "trec-covid.toml",
        topics: (&["trec_covid/topics.covid-round5.xml"], 50),
        qrels: (&["trec_covid/qrels.covid-complete.txt"], 50, 69_318),
        run: (&["trec_covid/anserini.covid-r5.abstract.qdel.bm25-top1k.txt.gz"], 50),
        folds: ("trec_covid/covid_random_folds.json", &[[30, 10, 10]; 5]),
    },
    Collection {
        config: "trec-dl.toml",
        topics: (&["trec_dl_doc/topics.dl19-doc.txt", "trec_dl_doc/topics.dl20.txt"], 243),
        qrels: (&["trec_dl_doc/qrels.dl19-doc.txt", "trec_dl_doc/qrels.dl20-doc.txt"], 88, 25_356),
        run: (&[], 0),
        folds: ("", &[]),
    },
];

/// Writes the files one after the other, as the heads of the configs say (`cat A B > C`), unpacked or not.
fn lay(root: &Path, to: &Path, from: &[&str], shared: &Path) {
    let to = root.join(to);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let bytes: Vec<u8> = from.iter().flat_map(|name| fs::read(shared.join(name)).unwrap()).collect();
    fs::write(to, bytes).unwrap();
}

#[test]
fn configs_of_collections_fit_the_real_files() {
    let Some(shared) = shared("topics_qrels") else { return };
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    for collection in COLLECTIONS {
        let name = collection.config;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
        let data = Config::load(Some(&path), "experiment", &[]).unwrap().data;
        let (topics_path, qrels_path) = (data.topics.unwrap(), data.qrels.unwrap());
        lay(root, &topics_path, collection.topics.0, &shared);
        lay(root, &qrels_path, collection.qrels.0, &shared);
        let topics = read_topics(&root.join(topics_path)).unwrap();
        assert_eq!(topics.len(), collection.topics.1, "{name}");
        let ids: BTreeSet<&str> = topics.iter().map(|topic| topic.id.as_str()).collect();
        let qrels = Qrels::read(&root.join(qrels_path)).unwrap();
        let counts = (qrels.topics().len(), qrels.judgements());
        assert_eq!(counts, (collection.qrels.1, collection.qrels.2), "{name}");
        assert!(qrels.topics().all(|topic| ids.contains(topic)), "{name}: judged topics without a query");
        if !collection.run.0.is_empty() {
            lay(root, data.run.as_ref().unwrap(), collection.run.0, &shared);
            let run = Run::read(&root.join(data.run.unwrap())).unwrap();
            assert_eq!(run.topics().filter(|topic| ids.contains(topic)).count(), collection.run.1, "{name}");
        }
        let Some(folds_path) = data.folds else { continue };
        assert!(folds_path.ends_with(Path::new(collection.folds.0).file_name().unwrap()), "{name}");
        lay(root, &folds_path, &[collection.folds.0], &shared);
        let folds = read_folds(&root.join(folds_path)).unwrap();
        let sizes: Vec<[usize; 3]> =
            folds.iter().map(|fold| [fold.train.len(), fold.validation.len(), fold.test.len()]).collect();
        assert_eq!(sizes, collection.folds.1, "{name}");
        let tested: Vec<&String> = folds.iter().flat_map(|fold| &fold.test).collect();
        assert!(tested.iter().all(|topic| ids.contains(topic.as_str())), "{name}: folds of other topics");
        assert_eq!(tested.iter().collect::<BTreeSet<_>>().len(), tested.len(), "{name}: tested twice");
    }
}
