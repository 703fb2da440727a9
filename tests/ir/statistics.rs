//! Significance tests and folds.

use std::collections::HashSet;

use ctune_dist::ir::folds::{make_folds, read_folds, write_folds};
use ctune_dist::ir::significance::{bootstrap_interval, holm, paired_t, randomisation, wins_ties_losses};
use proptest::prelude::*;

use super::*;

/// Student's sleep data (Student 1908), the worked example of R's `t.test`: two drugs, ten patients,
/// `t = -4.0621, df = 9, p-value = 0.002833`, mean of the differences -1.58.
const DRUG_1: [f64; 10] = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
const DRUG_2: [f64; 10] = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];

#[test]
fn paired_t_of_students_sleep_data() {
    let found = paired_t(&DRUG_1, &DRUG_2).unwrap();
    assert!((found.t + 4.0621).abs() < 5e-5 && found.df == 9, "{found:?}");
    assert!((found.p - 0.002833).abs() < 5e-7, "{found:?}");
    assert!((found.mean_difference + 1.58).abs() < 1e-12, "{found:?}");
    let turned = paired_t(&DRUG_2, &DRUG_1).unwrap();
    assert_eq!((turned.t, turned.p), (-found.t, found.p));
}

#[test]
fn paired_t_corner_cases() {
    let same = paired_t(&DRUG_1, &DRUG_1).unwrap();
    assert_eq!((same.t, same.p, same.df), (0.0, 1.0, 9));
    let one = paired_t(&[0.4], &[0.1]).unwrap();
    assert_eq!((one.p, one.df), (1.0, 0));
    let constant = paired_t(&[1.5, 2.5, 3.5], &[1.0, 2.0, 3.0]).unwrap();
    assert_eq!((constant.t, constant.p), (f64::INFINITY, 0.0));
    assert!(paired_t(&[], &[]).is_err());
    assert!(paired_t(&[1.0], &[1.0, 2.0]).is_err());
}

/// Of the 1,024 ways to swap ten pairs, count those at least as extreme: an exact p-value.
#[test]
fn randomisation_is_near_the_exact_p_value() {
    let differences = DRUG_1.iter().zip(DRUG_2).map(|(a, b)| a - b).collect::<Vec<_>>();
    let sum = |swaps: u32| -> f64 {
        let signed = differences.iter().enumerate().map(|(i, d)| if swaps >> i & 1 == 1 { -d } else { *d });
        signed.sum::<f64>().abs()
    };
    let exact = (0..1024).filter(|&swaps| sum(swaps) >= sum(0) - 1e-9).count() as f64 / 1024.0;
    let found = randomisation(&DRUG_1, &DRUG_2, 100_000, 7).unwrap();
    // Four standard errors of a share of 100,000.
    let slack = 4.0 * (exact * (1.0 - exact) / 1e5).sqrt();
    assert!((found - exact).abs() < slack, "{found} against {exact}");
    assert_eq!(found, randomisation(&DRUG_1, &DRUG_2, 100_000, 7).unwrap());
    assert_ne!(found, randomisation(&DRUG_1, &DRUG_2, 100_000, 8).unwrap());
    assert_eq!(randomisation(&DRUG_1, &DRUG_1, 1000, 7).unwrap(), 1.0);
}

#[test]
fn bootstrap_interval_covers_the_mean_and_not_zero() {
    let (low, high) = bootstrap_interval(&DRUG_1, &DRUG_2, 10_000, 7).unwrap();
    assert!(low < -1.58 && -1.58 < high && high < 0.0, "{low} {high}");
    // The normal interval is -1.58 +- 1.96 * 0.389 * sqrt(9 / 10).
    assert!((low + 2.30).abs() < 0.15 && (high + 0.86).abs() < 0.15, "{low} {high}");
}

/// R: `p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")` is 0.03 0.06 0.06 0.02.
#[test]
fn holm_as_r_has_it() {
    let found = holm(&[0.01, 0.04, 0.03, 0.005]);
    for (found, known) in found.iter().zip([0.03, 0.06, 0.06, 0.02]) {
        assert!((found - known).abs() < 1e-12, "{found} {known}");
    }
    assert_eq!(holm(&[0.6, 0.7]), [1.0, 1.0]);
    assert!(holm(&[]).is_empty());
}

#[test]
fn wins_ties_and_losses() {
    assert_eq!(wins_ties_losses(&[1.0, 2.0, 3.0, 0.0], &[0.0, 2.0, 4.0, -1.0]).unwrap(), (2, 1, 1));
}

#[test]
fn folds_are_read_with_numbers_strings_and_padding() {
    let folder = folder();
    let text = r#"{"s10": {"train_qids": ["a"], "predict": {"dev": ["b"], "test": ["c"]}},
        "s2": {"train_qids": [1, 1, "2"], "predict": {"dev": [3], "test": [4, 4]}}}"#;
    let folds = read_folds(&file(&folder, "folds.json", text)).unwrap();
    assert_eq!(folds[0].train, ["1", "2"]);
    assert_eq!(
        (folds[0].validation.as_slice(), folds[0].test.as_slice()),
        (&["3".into()][..], &["4".into()][..])
    );
    assert_eq!(folds[1].test, ["c"], "s2 comes before s10");
}

#[test]
fn damaged_folds_are_refused() {
    let folder = folder();
    let refused = |text: &str, word: &str| {
        let error = read_folds(&file(&folder, "folds.json", text)).unwrap_err();
        assert!(error.to_string().contains(word) && error.to_string().contains("folds.json"), "{error}");
    };
    refused("5", "not a fold file");
    refused("[]", "no fold");
    refused(r#"[["1"], ["2"], ["1"]]"#, "fold '1'");
    refused("{}", "no fold");
    refused(r#"{"s1": {"train_qids": ["1"]}}"#, "fold 's1'");
    refused(r#"{"s1": {"train_qids": ["1"], "predict": {"dev": ["2"], "test": ["1"]}}}"#, "topic '1'");
    refused(r#"{"s1": {"train_qids": ["1"], "predict": {"dev": ["1"], "test": ["2"]}}}"#, "topic '1'");
    refused(r#"{"s1": {"train_qids": ["1"], "predict": {"dev": [], "test": []}}}"#, "no test topic");
}

#[test]
fn folds_of_pyserini_and_cedr() {
    let folder = folder();
    let folds = read_folds(&file(&folder, "lists.json", r#"[["1", 2, "2"], ["3"], ["4"]]"#)).unwrap();
    assert_eq!((folds.len(), folds[0].test.as_slice()), (3, &["1".to_owned(), "2".into()][..]));
    assert_eq!(
        (folds[0].validation.as_slice(), folds[0].train.as_slice()),
        (&["3".to_owned()][..], &["4".to_owned()][..])
    );
    for (name, content) in [
        ("train.pairs", "1\td1\n1\td2\n2\td1\n"),
        ("valid.run", "3 Q0 d 1 2 t\n"),
        ("test.run", "4 Q0 d 1 2 t\n"),
    ] {
        file(&folder, &format!("f1.{name}"), content);
    }
    let folds = read_folds(folder.path()).unwrap();
    assert_eq!(
        (folds[0].train.join(" "), folds[0].validation.join(" "), folds[0].test.join(" ")),
        ("1 2".into(), "3".into(), "4".into())
    );
    assert!(read_folds(&folder.path().join("none")).is_err());
    let Some(cedr) = shared("topics_qrels/robust04/cedr") else { return };
    let folds = read_folds(&cedr).unwrap();
    let tested: std::collections::HashSet<_> = folds.iter().flat_map(|fold| &fold.test).collect();
    // The runs hold topic 672, which has no relevant document; the published json leaves it out.
    assert_eq!((folds.len(), tested.len()), (5, 250));
}

/// All public fold files that the configs use, and their sizes.
#[test]
fn public_fold_files() {
    let Some(root) = shared("topics_qrels") else { return };
    let files = [
        ("robust04/rob04_cedr_folds.json", 5, 249),
        ("robust04/rob04_huston14_title_folds.json", 5, 250),
        ("robust04/rob04_huston14_desc_folds.json", 5, 250),
        ("robust04/rob04_yang19_folds.json", 5, 250),
        ("gov2/gov2_maxp_folds.json", 3, 150),
        ("trec_covid/covid_random_folds.json", 5, 50),
    ];
    for (name, count, topics) in files {
        let folds = read_folds(&root.join(name)).unwrap();
        let tested = folds.iter().flat_map(|fold| &fold.test).collect::<HashSet<_>>();
        assert_eq!((folds.len(), tested.len()), (count, topics), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn folds_partition_the_topics(count in 3..60_usize, k in 3..7_usize, seed: u32) {
        let topics = (0..count).map(|i| i.to_string()).collect::<Vec<_>>();
        let folds = make_folds(&topics, k, seed);
        let mut twice = topics.clone();
        twice.reverse();
        twice.extend(topics.clone());
        prop_assert_eq!(&folds, &make_folds(&twice, k, seed), "neither order nor repetition matters");
        let mut tested = Vec::new();
        for (i, fold) in folds.iter().enumerate() {
            let mut all = [fold.train.clone(), fold.validation.clone(), fold.test.clone()].concat();
            all.sort();
            let mut expected = topics.clone();
            expected.sort();
            prop_assert_eq!(all, expected);
            prop_assert_eq!(&fold.validation, &folds[(i + 1) % k].test);
            prop_assert!(fold.test.len().abs_diff(count / k) <= 1);
            tested.extend(fold.test.clone());
        }
        tested.sort();
        tested.dedup();
        prop_assert_eq!(tested.len(), count);
        if folds.iter().all(|fold| !fold.test.is_empty()) {
            let folder = folder();
            let path = folder.path().join("folds.json");
            write_folds(&path, &folds).unwrap();
            prop_assert_eq!(read_folds(&path).unwrap(), folds);
        }
    }
}

#[test]
fn another_seed_gives_other_folds() {
    let topics = (0..50).map(|i| i.to_string()).collect::<Vec<_>>();
    assert_ne!(make_folds(&topics, 5, 1), make_folds(&topics, 5, 2));
}
