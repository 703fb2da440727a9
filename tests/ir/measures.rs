//! Measures against trec_eval.

use ctune_dist::ir::evaluate::{EvaluateOptions, measure, trec_layout};
use proptest::prelude::*;

use super::*;
use crate::skip::python;
use crate::start::BINARY;

/// The tie case: ties in scores, a topic that the run lacks, one without a relevant document, a
/// negative label, graded labels.
const TIE_QRELS: &str = "1 0 a 1\n1 0 b 0\n1 0 c 2\n2 0 a 1\n3 0 z 0\n4 0 n -1\n4 0 m 1\n";
const TIE_RUN: &str =
    "1 Q0 a 1 5 t\n1 Q0 b 2 5 t\n1 Q0 u 3 5 t\n1 Q0 c 4 1 t\n3 Q0 z 1 1 t\n4 Q0 n 1 2 t\n4 Q0 m 2 1 t\n";
const NAMES: [&str; 3] = ["map", "recip_rank", "ndcg_cut_5"];

/// As trec_eval prints it.
fn printed(values: &[f64]) -> Vec<String> {
    values.iter().map(|value| format!("{value:.4}")).collect()
}

fn tie_case(options: &Options) -> Evaluation {
    measured(TIE_QRELS, TIE_RUN, &NAMES, options)
}

#[test]
fn ties_go_by_document_id_descending() {
    let run = run_of(TIE_RUN);
    let order = run.get("1").unwrap().iter().map(|hit| hit.doc.as_str()).collect::<Vec<_>>();
    assert_eq!(order, ["u", "b", "a", "c"]);
}

#[test]
fn tie_case_has_trec_evals_values() {
    let complete = tie_case(&Options { complete: true, ..Options::default() });
    assert_eq!(printed(&complete.means), ["0.2292", "0.2083", "0.2871"]);
    assert_eq!(
        printed(&complete.column(Measure::NdcgCut(5)).unwrap()),
        ["0.5174", "0.0000", "0.0000", "0.6309"]
    );
    assert_eq!(complete.missing, 1);
    let common = tie_case(&Options::default());
    assert_eq!(printed(&common.means), ["0.3056", "0.2778", "0.3828"]);
    assert_eq!(common.topics.len(), 3);
    let level = tie_case(&Options { complete: true, level: 2, ..Options::default() });
    assert_eq!(printed(&level.means)[1..], ["0.0625", "0.2871"], "the level does not touch nDCG");
    let judged = tie_case(&Options { complete: true, judged_only: true, ..Options::default() });
    assert_eq!(printed(&judged.means)[1..], ["0.3750", "0.4050"]);
}

#[test]
fn depth_cuts_before_unjudged_documents_are_dropped() {
    // Rank 2 of topic 1 is b, judged 0: within depth 2 nothing is relevant, with or without -J.
    let options = Options { depth: Some(2), judged_only: true, ..Options::default() };
    assert_eq!(tie_case(&options).topics["1"], [0.0, 0.0, 0.0]);
}

#[test]
fn a_negative_level_and_foreign_topics_are_refused() {
    let (qrels, run) = (qrels_of(TIE_QRELS), run_of(TIE_RUN));
    let options = Options { level: -1, ..Options::default() };
    assert_eq!(evaluate(&qrels, &run, &[Measure::Map], &options).unwrap_err().exit_code(), 2);
    let foreign = run_of("q9 Q0 a 1 1 t\n");
    let error = evaluate(&qrels, &foreign, &[Measure::Map], &Options::default()).unwrap_err();
    assert!(error.to_string().contains("'q9'") && error.exit_code() == 3, "{error}");
}

#[test]
fn unjudged_run_topics_count_nowhere() {
    let with = measured(TIE_QRELS, &format!("{TIE_RUN}9 Q0 a 1 1 t\n"), &NAMES, &Options::default());
    assert_eq!(with.means, tie_case(&Options::default()).means);
    assert_eq!(with.unjudged, 1);
}

/// f32 makes a tie of what f64 tells apart, and the tie goes to the higher document id.
#[test]
fn scores_compare_as_f32_unless_asked() {
    let (qrels, run) = ("1 0 a 1\n", "1 Q0 a 1 1.00000001 t\n1 Q0 b 2 1.00000000 t\n");
    let f32s = measured(qrels, run, &["recip_rank"], &Options::default());
    let f64s = measured(qrels, run, &["recip_rank"], &Options { f64_scores: true, ..Options::default() });
    assert_eq!((f32s.means[0], f64s.means[0]), (0.5, 1.0));
}

/// Rank-column order, ties by document id ascending, topics of the qrels below the line.
#[test]
fn msmarco_mrr_follows_the_rank_column() {
    let qrels = "1 0 b 1\n2 0 x 1\n3 0 y 1\n4 0 z 1\n";
    let run = "1\tc\t2\n1\tb\t2\n1\ta\t1\n2\tw\t1\n3\ty\t1\n";
    let found = measured(qrels, run, &["msmarco_mrr_10", "msmarco_mrr_1"], &Options::default());
    assert_eq!(found.means, [(0.5 + 1.0) / 4.0, 1.0 / 4.0]);
    // The score says b first; the rank column, which counts here, says a.
    let six = measured("1 0 b 1\n", "1 Q0 a 1 1 t\n1 Q0 b 2 9 t\n", &["msmarco_mrr_10"], &Options::default());
    assert_eq!(six.means, [0.5]);
    let spoilt = run_of("1 Q0 a first 1 t\n");
    let error = evaluate(&qrels_of("1 0 a 1\n"), &spoilt, &[Measure::MsMarcoMrr(10)], &Options::default());
    assert!(error.unwrap_err().to_string().contains("rank column"));
}

/// Topic 1 by hand, order u(-) b(0) a(1) c(2).
#[test]
fn measures_by_hand() {
    let values = |name: &str| measured(TIE_QRELS, TIE_RUN, &[name], &Options::default()).topics["1"][0];
    let near = |name: &str, value: f64| {
        let found = values(name);
        assert!((found - value).abs() < 1e-12, "{name} is {found}, not {value}");
    };
    near("num_ret", 4.0);
    near("num_rel", 2.0);
    near("num_rel_ret", 2.0);
    near("P_3", 1.0 / 3.0);
    near("P_10", 2.0 / 10.0);
    near("recall_3", 0.5);
    near("Rprec", 0.0);
    near("success_2", 0.0);
    near("success_3", 1.0);
    near("judged_4", 3.0 / 4.0);
    near("map_cut_3", (1.0 / 3.0) / 2.0);
    // One judged document that is not relevant stands above both relevant ones: min(1, 2) of min(1, 2).
    near("bpref", 0.0);
    near("num_nonrel_judged_ret", 1.0);
    near("utility", 2.0 - 2.0);
    near("set_P", 0.5);
    near("set_recall", 1.0);
    near("set_relative_P", 1.0);
    near("set_map", 0.5);
    near("set_F", 2.0 * 0.5 / 1.5);
    near("relative_P_3", 0.5);
    near("unj_5", 1.0 / 5.0);
    near("rbp", 0.1 * (0.5 * 0.9 * 0.9 + 0.9 * 0.9 * 0.9));
    near("rbp_resid", 0.9_f64.powi(4) + 0.1);
    // Multiples of num_rel = 2: ranks 1 (0.4 + 0.9 cut) and 4 (4 + 0.9 cut).
    near("Rprec_mult_0.20", 0.0);
    near("Rprec_mult_2.00", 0.5);
    near("11pt_avg", 0.5);
    // Two documents that are not relevant stand above each relevant one.
    near("binG", (1.0 / 4.0_f64.log2() + 1.0 / 4.0_f64.log2()) / 2.0);
    // The best order gathers 2, 3, 4, 5 (at least 1 a document); the list 0, 0, 1, 3.
    near("G", (1.0 / 5.0_f64.log2() + 2.0 / 4.0_f64.log2()) / 3.0);
    // nDCG at ranks 3 and 4, where the relevant documents are.
    let (third, fourth) = (1.0 / 4.0_f64.log2(), 2.0 / 5.0_f64.log2());
    let best = 2.0 + 1.0 / 3.0_f64.log2();
    near("ndcg_rel", (third / best + (third + fourth) / best) / 2.0);
    // The best order goes down at ranks 1 and 2, where the list has nothing; it ends at rank 4.
    near("Rndcg", (0.0 + 0.0 + (third + fourth) / best) / 3.0);
    // u is outside the pool, b in it: at rank 3, 1/3 + (1 / 3) * (0 + e) / (1 + 2e); at rank 4 with a.
    let e = 0.00001;
    let inferred =
        1.0 / 3.0 + 1.0 / 3.0 * e / (1.0 + 2.0 * e) + 1.0 / 4.0 + 2.0 / 4.0 * (1.0 + e) / (2.0 + 2.0 * e);
    near("infAP", inferred / 2.0);
    near("iprec_at_recall_0.00", 0.5);
    near("iprec_at_recall_1.00", 0.5);
    let ideal = 3.0 + 1.0 / 3.0_f64.log2();
    near("ndcg_exp_cut_5", (1.0 / 4.0_f64.log2() + 3.0 / 5.0_f64.log2()) / ideal);
}

#[test]
fn names_round_trip_and_unknown_ones_are_refused() {
    for measure in
        Measure::official().into_iter().skip(1).chain([Measure::NdcgCut(7), Measure::MsMarcoMrr(10)])
    {
        assert_eq!(measure.to_string().parse::<Measure>().unwrap(), measure);
    }
    assert_eq!(Measure::expand("ndcg_cut.5,20").unwrap(), [Measure::NdcgCut(5), Measure::NdcgCut(20)]);
    assert_eq!(Measure::expand("P").unwrap().len(), 9);
    assert_eq!(Measure::expand("official").unwrap().len(), 30);
    assert_eq!(Measure::expand("set").unwrap().len(), 11);
    let all = Measure::expand("all_trec").unwrap();
    assert!(all.is_sorted() && all.len() == 100, "{}", all.len());
    for name in all.iter().filter(|measure| !measure.is_text()).map(Measure::to_string) {
        assert_eq!(name.parse::<Measure>().unwrap().to_string(), name);
    }
    assert_eq!(Measure::expand("relstring_20").unwrap()[0].to_string(), "relstring_20");
    for name in ["runid", "relstring"] {
        assert!(name.parse::<Measure>().unwrap_err().to_string().contains("is text"));
    }
    for name in ["mrr_10", "recip_rank_10", "ndcg_cut_0", "P_", "P_x", "", "iprec_at_recall_2"] {
        let error = name.parse::<Measure>().unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("is not a measure"), "{error}");
        assert!(error.to_string().len() <= 300, "{error}");
    }
}

/// trec_eval's own output files, byte for byte.
#[test]
fn nist_outputs_to_the_last_byte() {
    let Some(folder) = shared("fixtures/trec_eval/test") else { return };
    let plain = Options::default();
    let complete = Options { complete: true, ..plain };
    let (test, trunc, all) = ("results.test", "results.trunc", &["all_trec"][..]);
    let cases = [
        ("qrels.test", test, "out.test", &[][..], plain),
        ("qrels.test", test, "out.test", &["official"], plain),
        ("qrels.test", test, "out.test.a", all, plain),
        ("qrels.test", test, "out.test.aq", all, plain),
        ("qrels.test.with-comments", test, "out.test.aq", all, plain),
        ("qrels.test", trunc, "out.test.aqc", all, complete),
        ("qrels.test", trunc, "out.test.aqcM", all, Options { depth: Some(100), ..complete }),
        (
            "qrels.rel_level",
            test,
            "out.test.aql",
            &["all_trec", "relstring.20"],
            Options { level: 2, ..plain },
        ),
    ];
    for (qrels, run, output, measures, how) in cases {
        let o = EvaluateOptions {
            qrels: folder.join(qrels),
            run: folder.join(run),
            measures: measures.iter().map(|name| (*name).to_owned()).collect(),
            how,
            ..EvaluateOptions::default()
        };
        let text = trec_layout(&measure(&o).unwrap(), output.contains(".aq"), true);
        let wanted = std::fs::read_to_string(folder.join(output)).unwrap();
        for (found, wanted) in text.lines().zip(wanted.lines()) {
            assert_eq!(found, wanted, "{output}");
        }
        assert_eq!(text, wanted, "{output}");
    }
}

/// NIST's output for measures with lists of cut-offs; custom gains, coefficients and recall points are not
/// supported and are refused.
#[test]
fn nist_output_of_other_cutoffs() {
    let Some(folder) = shared("fixtures/trec_eval/test") else { return };
    let names = [
        "iprec_at_recall..10,.20,.25,.75,.50",
        "P.5,7,3",
        "recall.20,2000",
        "Rprec_mult.5.0,0.2,0.35",
        "ndcg_cut.10,20,23",
        "success.2,5,20",
    ];
    let o = EvaluateOptions {
        qrels: folder.join("qrels.test"),
        run: folder.join("results.test"),
        measures: names.map(String::from).to_vec(),
        ..EvaluateOptions::default()
    };
    let text = trec_layout(&measure(&o).unwrap(), true, true);
    let all = std::fs::read_to_string(folder.join("out.test.meas_params")).unwrap();
    let refused = ["utility_", "11pt_avg_", "ndcg_1="];
    let wanted: Vec<&str> =
        all.lines().filter(|line| !refused.iter().any(|name| line.starts_with(name))).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    for name in ["utility.2,-1,0,0", "11pt_avg..25,.5,.75", "ndcg.1=3,2=9,4=4.5"] {
        let error = Measure::expand(name).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("no parameters here"), "{error}");
    }
}

/// trec_eval's own code, if its Python package can be imported: `CTUNE_PYTHON` or `python3`.
#[test]
fn random_files_agree_with_trec_evals_code() {
    let Some(python) = python("pytrec_eval", "pytrec-eval-terrier==0.5.11") else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/trec_eval_differential.py");
    let output = std::process::Command::new(&python)
        .args([script, "--binary", BINARY, "--topics", "500", "--seed", "7"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches(" 0 disagree").count(), 6, "{text}");
}

/// The values of NIST's test files that the project's documentation quotes.
#[test]
fn nist_values() {
    let Some(folder) = shared("fixtures/trec_eval/test") else { return };
    let qrels = Qrels::read(&folder.join("qrels.test")).unwrap();
    let run = Run::read(&folder.join("results.test")).unwrap();
    let names = [
        "num_q",
        "num_ret",
        "num_rel",
        "num_rel_ret",
        "map",
        "recip_rank",
        "P_5",
        "P_10",
        "ndcg",
        "ndcg_cut_5",
    ];
    let measures = names.map(|name| name.parse().unwrap());
    let found = evaluate(&qrels, &run, &measures, &Options::default()).unwrap();
    assert_eq!(found.means[..4], [3.0, 1500.0, 561.0, 131.0]);
    assert_eq!(printed(&found.means[4..]), ["0.1785", "0.4064", "0.2667", "0.3000", "0.4021", "0.2768"]);
    assert_eq!(printed(&found.column(Measure::NdcgCut(5)).unwrap()), ["0.0000", "0.8304", "0.0000"]);
}

/// Anserini's published P30 of BM25 on CACM; its run file stops at rank 30, so its MAP cannot be had.
#[test]
fn cacm_published_values() {
    let Some(folder) = shared("fixtures/anserini_cacm") else { return };
    let qrels = Qrels::read(&folder.join("qrels.cacm.txt")).unwrap();
    let run = Run::read(&folder.join("cacm-bm25.txt")).unwrap();
    let found = evaluate(&qrels, &run, &[Measure::P(30)], &Options::default()).unwrap();
    assert_eq!(printed(&found.means), ["0.1942"]);
}

/// Random qrels and runs over few documents and few scores, so that ties are the rule.
fn collection() -> impl Strategy<Value = (Vec<String>, Vec<String>)> {
    let judgement = (0..4_u8, 0..12_u8, -1..4_i32);
    let hit = (0..4_u8, 0..14_u8, 0..5_u8);
    (prop::collection::vec(judgement, 1..40), prop::collection::vec(hit, 1..40)).prop_map(|(judged, hits)| {
        let mut seen = std::collections::HashSet::new();
        let judged = judged.iter().filter(|(topic, doc, _)| seen.insert((*topic, *doc)));
        let qrels =
            judged.map(|(topic, doc, label)| format!("{topic} 0 d{doc} {label}\n")).collect::<Vec<_>>();
        let mut seen = std::collections::HashSet::new();
        let hits = hits.iter().filter(|(topic, doc, _)| seen.insert((*topic, *doc)));
        let run = hits.map(|(topic, doc, score)| format!("{topic} Q0 d{doc} 1 {score} t\n")).collect();
        (qrels, run)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn measures_lie_in_the_unit_interval((qrels, run) in collection(), level in 0..4, judged_only: bool, depth in 0..9_usize) {
        let measures = ["map", "gm_map", "Rprec", "bpref", "recip_rank", "ndcg", "ndcg_cut_3", "ndcg_exp_cut_5", "P_5",
            "recall_5", "success_2", "judged_4", "map_cut_4", "msmarco_mrr_10", "iprec_at_recall_0.30", "infAP", "gm_bpref",
            "Rprec_mult_1.40", "11pt_avg", "binG", "G", "ndcg_rel", "relative_P_3", "set_F", "set_map", "unj_3"]
            .map(|name| name.parse().unwrap());
        let options = Options { complete: true, level, judged_only, depth: Some(depth).filter(|&d| d > 0), f64_scores: false };
        if let Ok(found) = evaluate(&qrels_of(&qrels.concat()), &run_of(&run.concat()), &measures, &options) {
            for value in found.topics.values().flatten().chain(&found.means) {
                prop_assert!((0.0..=1.0).contains(value), "{value} in {found:?}");
            }
        }
    }

    #[test]
    fn the_order_of_lines_does_not_matter((qrels, run) in collection(), turn in 0..40_usize) {
        let turned = |lines: &[String]| {
            let mut lines = lines.to_vec();
            lines.reverse();
            let turn = turn % lines.len();
            lines.rotate_left(turn);
            lines.concat()
        };
        let measures = Measure::official();
        let first = evaluate(&qrels_of(&qrels.concat()), &run_of(&run.concat()), &measures, &Options::default());
        let second = evaluate(&qrels_of(&turned(&qrels)), &run_of(&turned(&run)), &measures, &Options::default());
        prop_assert_eq!(first.ok(), second.ok());
    }

    /// The best order of the judged documents has nDCG 1.
    #[test]
    fn the_ideal_order_has_ndcg_one(labels in prop::collection::vec(0..4_i32, 1..20)) {
        let qrels = labels.iter().enumerate().map(|(i, label)| format!("1 0 d{i} {label}\n")).collect::<String>();
        let run = labels.iter().enumerate().map(|(i, label)| format!("1 Q0 d{i} 1 {label} t\n")).collect::<String>();
        let found = measured(&qrels, &run, &["ndcg", "ndcg_cut_5"], &Options::default());
        let best = if labels.iter().any(|&label| label > 0) { 1.0 } else { 0.0 };
        prop_assert!(found.means.iter().all(|value| (value - best).abs() < 1e-12), "{:?}", found.means);
    }
}
