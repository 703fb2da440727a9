//! `launch/fetch_orcas.sh` against a server in this process: complete files, transfers that break off, wrong
//! sums, and machines without curl or wget. The files are small stand-ins.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// What the server has, and what was asked of it.
struct Server {
    url: String,
    /// `path first-byte` of each request, in order.
    asked: Arc<Mutex<Vec<String>>>,
}

const FILES: [&str; 3] = ["orcas.tsv.gz", "msmarco-docs.tsv.gz", "msmarco-docs-lookup.tsv.gz"];

fn content(name: &str) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for i in 0..4000 {
        writeln!(gzip, "{name}\t{i}\t{}", i * 7919 % 1013).unwrap();
    }
    gzip.finish().unwrap()
}

impl Server {
    /// Serves `FILES` below /data. Each answer ends after `most` bytes of its file.
    fn start(most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/data", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        // The thread ends with the process: nobody waits for it.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, most, &log);
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(mut stream: TcpStream, most: usize, log: &Mutex<Vec<String>>) {
    let (mut path, mut first) = (String::new(), 0);
    for line in BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("GET /data/") {
            path = rest.split(' ').next().unwrap().into();
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            first = range.trim_end_matches('-').parse().unwrap();
        }
    }
    log.lock().unwrap().push(format!("{path} {first}"));
    let mut send = |head: &str, body: &[u8]| {
        // The client may be gone already.
        let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
        let _ = stream.write_all(body);
    };
    if !FILES.contains(&path.as_str()) {
        return send("404 Not Found", b"");
    }
    let body = content(&path);
    if first >= body.len() {
        return send(&format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{}", body.len()), b"");
    }
    let head = format!("Content-Length: {}\r\nAccept-Ranges: bytes", body.len() - first);
    let sent = &body[first..body.len().min(first + most)];
    match first {
        0 => send(&format!("200 OK\r\n{head}"), sent),
        _ => {
            let (last, all) = (body.len() - 1, body.len());
            send(
                &format!("206 Partial Content\r\n{head}\r\nContent-Range: bytes {first}-{last}/{all}"),
                sent,
            );
        }
    }
}

/// The script without its questions, with the stand-ins' sums; `tools`, if given, are the only programs that
/// it finds.
fn fetch(folder: &Path, url: &str, arguments: &[&str], tools: Option<&[&str]>) -> Output {
    let sums = folder.join("sums");
    let lines: Vec<String> = FILES
        .iter()
        .map(|name| {
            std::fs::write(folder.join("one"), content(name)).unwrap();
            let sum = Command::new("md5sum").arg(folder.join("one")).output().unwrap().stdout;
            format!("{}  {name}\n", String::from_utf8(sum).unwrap().split(' ').next().unwrap())
        })
        .collect();
    std::fs::write(&sums, lines.concat()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/fetch_orcas.sh");
    let mut command = Command::new(crate::skip::tool("bash").unwrap());
    command.arg(script).arg(folder.join("orcas")).args(arguments);
    command.env("CTUNE_ORCAS_URL", url).env("CTUNE_ORCAS_MD5", &sums).env("CTUNE_YES", "1");
    // A machine's own proxy would not find this server.
    command.env("no_proxy", "127.0.0.1").env_remove("http_proxy");
    if let Some(tools) = tools {
        let bin = folder.join("bin");
        let _ = std::fs::remove_dir_all(&bin);
        std::fs::create_dir(&bin).unwrap();
        for tool in ["awk", "cat", "gzip", "md5sum", "mkdir", "mv", "sleep"].iter().chain(tools) {
            std::os::unix::fs::symlink(crate::skip::tool(tool).unwrap(), bin.join(tool)).unwrap();
        }
        command.env("PATH", bin);
    }
    command.output().unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&[&out.stdout[..], &out.stderr].concat()).into_owned()
}

/// Every file with its content, and nothing else.
fn assert_complete(folder: &Path, unpacked: bool) {
    let found = std::fs::read_dir(folder.join("orcas")).unwrap().count();
    assert_eq!(found, if unpacked { 5 } else { 3 });
    for name in FILES {
        assert!(std::fs::read(folder.join("orcas").join(name)).unwrap() == content(name), "{name}");
    }
}

/// Clients that this machine has.
fn clients() -> impl Iterator<Item = &'static str> {
    ["curl", "wget"].into_iter().filter(|client| crate::skip::tool(client).is_some())
}

#[test]
fn licence_files_and_a_second_start() {
    for client in clients() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(usize::MAX);
        let out = fetch(folder.path(), &server.url, &["--unpack"], Some(&[client]));
        let text = said(&out);
        assert!(out.status.success(), "{client}: {text}");
        assert!(text.contains("NON-COMMERCIAL RESEARCH ONLY") && text.contains("8.4GB"), "{text}");
        assert_complete(folder.path(), true);
        let unpacked = std::fs::read_to_string(folder.path().join("orcas/msmarco-docs.tsv")).unwrap();
        assert_eq!(unpacked.lines().count(), 4000);
        assert_eq!(server.asked().len(), 3);
        let again = fetch(folder.path(), &server.url, &["--unpack"], Some(&[client]));
        assert!(again.status.success() && said(&again).contains("orcas.tsv.gz: complete"));
        assert_eq!(server.asked().len(), 3, "nothing is fetched twice");
    }
}

#[test]
fn transfers_that_break_off_go_on_where_they_stopped() {
    for client in clients() {
        let folder = tempfile::tempdir().unwrap();
        let length = content(FILES[0]).len();
        let server = Server::start(length * 2 / 3);
        let out = fetch(folder.path(), &server.url, &["--log"], Some(&[client]));
        assert!(out.status.success(), "{client}: {}", said(&out));
        assert_eq!(server.asked(), [format!("{} 0", FILES[0]), format!("{} {}", FILES[0], length * 2 / 3)]);
        assert!(std::fs::read(folder.path().join("orcas").join(FILES[0])).unwrap() == content(FILES[0]));
        // A script that was killed after the last byte: the server has nothing to add.
        let whole = folder.path().join("orcas").join(FILES[0]);
        std::fs::rename(&whole, whole.with_extension("gz.part")).unwrap();
        let out = fetch(folder.path(), &server.url, &["--log"], Some(&[client]));
        assert!(out.status.success() && whole.is_file(), "{client}: {}", said(&out));
    }
}

#[test]
fn what_is_wrong_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(usize::MAX);
    let refused = |out: &Output, word: &str| {
        let text = said(out);
        assert!(!out.status.success() && text.contains(word), "{word}: {text}");
    };
    refused(&fetch(folder.path(), &server.url, &["--log"], Some(&[])), "neither curl nor wget");
    refused(&fetch(folder.path(), &server.url, &["--all"], None), "--log or --unpack");
    for client in clients() {
        let nowhere = server.url.replace("data", "other");
        refused(&fetch(folder.path(), &nowhere, &["--log"], Some(&[client])), "the server refuses it");
    }
    // The published sums are not those of the stand-ins.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/fetch_orcas.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg(folder.path().join("orcas")).arg("--log").env("no_proxy", "127.0.0.1");
    let out = command.env("CTUNE_ORCAS_URL", &server.url).env("CTUNE_YES", "1").output().unwrap();
    refused(&out, "md5 is not 4b9350bf997c5c0eaa562be81c796981");
    assert!(!folder.path().join("orcas/orcas.tsv.gz").exists(), "a wrong file gets no name");
}
