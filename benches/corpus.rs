//! What preparing and reading shards costs, on a folder that `sample synthetic` made. `benches/corpus.sh` drives it.
//!
//!     cargo bench --bench corpus -- prepare FOLDER     prepare in this process, then the bare tokeniser
//!     cargo bench --bench corpus -- access SHARDS      opening, random access, the loader
//!     cargo bench --bench corpus -- share SHARDS N     memory of N processes that read the same shards

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use ctune_dist::config::PART_TOKENS;
use ctune_dist::corpus::prepare::{self, PrepareOptions};
use ctune_dist::corpus::read::documents::Field;
use ctune_dist::corpus::{Filter, Shards, Source};
use ctune_dist::data::pack::Packer;
use ctune_dist::data::{
    Batch, ClickOptions, ClickSource, Cursor, Grades, Loader, LoaderOptions, Negatives, PairUse,
    SampleSource, Truncate,
};
use ctune_dist::text::{Special, Tokenizer};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    // `cargo bench` adds a flag of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|text| !text.starts_with("--")).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["prepare", folder] => preparing(Path::new(folder)),
        ["access", shards] => access(Path::new(shards)),
        ["share", shards, processes] => share(Path::new(shards), processes.parse()?),
        ["hold", shards] => hold(Path::new(shards)),
        _ => {
            println!("usage: prepare FOLDER | access SHARDS | share SHARDS N (see benches/corpus.sh)");
            Ok(())
        }
    }
}

/// A line of /proc/`file` in MB.
fn megabytes(file: &str, line: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(format!("/proc/{file}"))?;
    let found = text.lines().find_map(|text| text.strip_prefix(line)).ok_or("no such line")?;
    Ok(found.trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

/// Seconds that the CPUs spent on this process: what a machine that others use too can still measure.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Fields 14 and 15, counted behind the name in brackets; in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

fn preparing(folder: &Path) -> Outcome {
    let out = folder.join("shards");
    let _ = std::fs::remove_dir_all(&out);
    let tokenizer = folder.join("tokenizer");
    let fields = vec![Field::Title, Field::Body];
    let options = PrepareOptions {
        sources: vec![
            Source::clicks(folder.join("clicks.tsv")),
            Source::documents(folder.join("documents.tsv")),
        ],
        out: out.clone(),
        tokenizer: Some(tokenizer.clone()),
        vocab: 30_522,
        max_tokens: 512,
        fields,
        all_documents: true,
        exclude_topics: Vec::new(),
        exclude_qrels: Vec::new(),
        strict: false,
        repair: false,
        part_tokens: PART_TOKENS,
        filter: Filter::default(),
    };
    let start = Instant::now();
    prepare::run(&options)?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()?);
    let peak = megabytes("self/status", "VmHWM:")?;
    let shards = Shards::open(&out)?;
    let about = shards.manifest();
    let tokens = about.document_tokens + about.query_tokens;
    let (bare_tokens, bare_seconds, bare_cpu) = bare(folder, &Tokenizer::load(&tokenizer)?)?;
    let (whole, alone) = (tokens as f64 / seconds / 1e6, bare_tokens as f64 / bare_seconds / 1e6);
    println!(
        "RESULT documents {} clicks {} tokens {tokens} prepare_s {seconds:.1} peak_MB {peak:.0} prepare_Mtok_s {whole:.2} \
         bare_s {bare_seconds:.1} bare_Mtok_s {alone:.2} share {:.2} prepare_cpu_s {cpu:.1} bare_cpu_s {bare_cpu:.1} \
         cpu_share {:.2}",
        about.documents,
        about.clicks,
        whole / alone,
        (tokens as f64 / cpu) / (bare_tokens as f64 / bare_cpu)
    );
    Ok(())
}

/// Tokens, seconds and CPU seconds of the tokeniser alone, all threads, on the text that `prepare` has just read: documents cut at
/// the same length and every query once. Reading and splitting the lines is not timed.
fn bare(folder: &Path, tokenizer: &Tokenizer) -> Result<(u64, f64, f64), Box<dyn std::error::Error>> {
    const TEXTS: usize = 8192;
    let (mut tokens, mut seconds, mut cpu) = (0, 0.0, 0.0);
    let mut run = |texts: &mut Vec<String>, most: usize| -> Outcome {
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (start, before) = (Instant::now(), cpu_seconds()?);
        let encoded = tokenizer.encode_batch(&views, most)?;
        seconds += start.elapsed().as_secs_f64();
        cpu += cpu_seconds()? - before;
        tokens += encoded.iter().map(|tokens| tokens.len() as u64).sum::<u64>();
        texts.clear();
        Ok(())
    };
    let mut texts = Vec::new();
    for (name, document) in [("documents.tsv", true), ("clicks.tsv", false)] {
        let mut last = String::new();
        for line in BufReader::with_capacity(1 << 20, std::fs::File::open(folder.join(name))?).lines() {
            let line = line?;
            if document {
                texts.push(line.splitn(3, '\t').nth(2).unwrap_or_default().replacen('\t', " ", 1));
            } else {
                let mut columns = line.split('\t');
                let id = columns.next().unwrap_or_default();
                // The rows of a query stand together.
                if id != last {
                    id.clone_into(&mut last);
                    texts.push(columns.next().unwrap_or_default().to_owned());
                }
            }
            if texts.len() == TEXTS {
                run(&mut texts, if document { 512 } else { usize::MAX })?;
            }
        }
        run(&mut texts, if document { 512 } else { usize::MAX })?;
    }
    Ok((tokens, seconds, cpu))
}

fn access(path: &Path) -> Outcome {
    let before = megabytes("self/status", "VmRSS:")?;
    let start = Instant::now();
    let shards = Shards::open(path)?;
    let opened = start.elapsed().as_secs_f64() * 1e3;
    let memory = megabytes("self/status", "VmRSS:")? - before;
    let start = Instant::now();
    shards.verify()?;
    let verified = start.elapsed().as_secs_f64();
    let bytes: u64 = shards.manifest().files.iter().map(|file| file.bytes).sum();
    println!(
        "RESULT open_ms {opened:.1} open_MB {memory:.1} verify_s {verified:.2} shards_MB {:.0}",
        bytes as f64 / 1e6
    );
    let special = shards.manifest().special;
    let log = Arc::new(shards);
    let source = Arc::new(ClickSource::new(
        log.clone(),
        ClickOptions {
            seed: 1,
            max_tokens: 512,
            max_query_tokens: None,
            truncate: Truncate::Document,
            negatives: Negatives::RandomDocument,
            negatives_per_positive: 1,
            hard: None,
            grades: Grades::None,
            pairs: PairUse::Labelled,
        },
    )?);
    samples(&source)?;
    packing(&source)?;
    let vocab = log.manifest().vocab as u32;
    for whole_word in [false, true] {
        loading(source.clone(), special, vocab, whole_word)?;
    }
    Ok(())
}

/// Which samples go into which pack, an epoch of them, on one core.
fn packing(source: &ClickSource) -> Outcome {
    let start = Instant::now();
    let packer = Packer::new(source, 1, 16_384)?;
    let mut samples = 0;
    for window in 0..packer.windows() {
        samples += packer.window(source, 0, window)?.iter().map(Vec::len).sum::<usize>();
    }
    println!("RESULT packing_M_s {:.2}", samples as f64 / start.elapsed().as_secs_f64() / 1e6);
    Ok(())
}

fn samples(source: &ClickSource) -> Outcome {
    // Samples in an order that no cache foresees, on one core: their lengths, as packing asks for them ...
    let count = 4_000_000u32;
    let place = |i: u32| (u64::from(i) * 2_654_435_761 % u64::from(source.samples())) as u32;
    let start = Instant::now();
    let length: usize = (0..count).map(|i| source.length(place(i), 0)).sum();
    let lengths = f64::from(count) / start.elapsed().as_secs_f64() / 1e6;
    // ... and whole, copied into a batch.
    let count = 200_000u32;
    let start = Instant::now();
    let mut batch = Batch::default();
    for i in 0..count {
        if i % 64 == 0 {
            batch = Batch::default();
        }
        source.push(place(i), 0, &mut batch)?;
    }
    let whole = f64::from(count) / start.elapsed().as_secs_f64() / 1e6;
    println!(
        "RESULT lengths_M_s {lengths:.2} mean_tokens {:.0} whole_M_s {whole:.2} last {}",
        length as f64 / 4e6,
        batch.tokens()
    );
    Ok(())
}

fn loading(source: Arc<ClickSource>, special: Special, vocab: u32, whole_word: bool) -> Outcome {
    // where words are masked whole, a third of the vocabulary continues one
    let continues = |id: u32| u32::from(whole_word && id > 4 && id.is_multiple_of(3));
    let rule = ctune_dist::engine::op::MaskRule {
        seed: 1,
        threshold: (0.15 * 4_294_967_296.0) as u32,
        segments: 3,
        whole_word,
        vocab,
        cls: special.cls,
        sep: special.sep,
        mask: special.mask,
    };
    let mut loader = Loader::new(
        source,
        LoaderOptions {
            seed: 1,
            pack_tokens: 16_384,
            packs_per_step: 8,
            rank: 0,
            world: 1,
            rule: Some(rule),
            continues: Arc::new((0..vocab).map(continues).collect()),
            start: Cursor::default(),
        },
    )?;
    loader.next_step()?;
    let (start, mut tokens) = (Instant::now(), 0);
    for _ in 0..200 {
        tokens += loader.next_step()?.tokens;
    }
    let rate = tokens as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("RESULT loader_Mtok_s {rate:.1} whole_word {whole_word}");
    Ok(())
}

/// Reads every token and waits, so that `share` can look at its memory.
fn hold(path: &Path) -> Outcome {
    let shards = Shards::open(path)?;
    let about = shards.manifest();
    let mut sum = 0u64;
    let mut tokens = Vec::new();
    for document in 0..about.documents {
        tokens.clear();
        shards.document(document).extend(&mut tokens, usize::MAX);
        sum += tokens.iter().map(|&token| u64::from(token)).sum::<u64>();
    }
    println!("{sum}");
    std::io::stdout().flush()?;
    // Until the parent looked: it closes our standard input.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn share(path: &Path, processes: usize) -> Outcome {
    let mut children = Vec::new();
    for _ in 0..processes {
        let mut command = Command::new(std::env::current_exe()?);
        children.push(command.arg("hold").arg(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    }
    let mut outputs = Vec::new();
    for child in &mut children {
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        output.read_line(&mut String::new())?;
        outputs.push(output);
    }
    // All have read everything and hold it.
    let (mut rss, mut pss) = (0.0, 0.0);
    let inputs: Vec<_> = children.iter_mut().map(|child| child.stdin.take()).collect();
    for child in &children {
        let file = format!("{}/smaps_rollup", child.id());
        rss += megabytes(&file, "Rss:")?;
        pss += megabytes(&file, "Pss:")?;
    }
    drop(inputs);
    for child in &mut children {
        child.wait()?;
    }
    let bytes: u64 = Shards::open(path)?.manifest().files.iter().map(|file| file.bytes).sum();
    println!(
        "RESULT processes {processes} shards_MB {:.0} sum_of_RSS_MB {rss:.0} sum_of_PSS_MB {pss:.0}",
        bytes as f64 / 1048576.0
    );
    Ok(())
}
