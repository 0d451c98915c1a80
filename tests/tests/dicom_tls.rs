//! DICOM over TLS: who is let in with which certificate under which title on which port, and what others make of it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bridge::config::{Config, Peer};
use bridge::dicom::encrypted::towards;
use dicom_scp::scu::{Association, Proposal, ScuError, ScuOptions};
use dicom_scp::{AeTitle, Rejection, TransferSyntax, sop_class};
use tests::certificates::{Authority, Kind, Shown, self_signed};
use tests::dicom::{connect, data_set, slices, store, subject, write_files};
use tests::peers::{StoreScp, dcmtk, python, run};
use tests::{Bridge, NO_PLAIN_DICOM, binary, files_below, have, wait_for};

/// What the bridge shows, and by whom it is vouched for.
struct Site {
    dir: tempfile::TempDir,
    authority: Authority,
    shown: Shown,
}

fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority", false);
    let shown = authority.issue("bridge", &["bridge.example", "127.0.0.1"], Kind::Good);
    Site { dir, authority, shown }
}

impl Site {
    /// The lines of `[dicom.tls]`.
    fn tls(&self, clients: &str) -> String {
        tls_lines(&self.shown, clients, &self.authority.certificate)
    }

    /// How a caller that shows `certificate` calls the bridge.
    fn caller(&self, certificate: Option<&Shown>) -> Peer {
        let shows = certificate.map_or_else(String::new, |shown| {
            format!("tls_client_certificate_file = {:?}\ntls_client_key_file = {:?}\n", shown.certificate, shown.key)
        });
        let ca = &self.authority.certificate;
        let toml = format!(
            "[[peer]]\nae_title = \"B\"\nhost = \"127.0.0.1\"\nport = 1\ntls = true\ntls_ca_files = [{ca:?}]\n{shows}"
        );
        Config::parse(&toml, HashMap::new()).unwrap().peers.remove(0)
    }
}

fn tls_lines(shown: &Shown, clients: &str, ca: &Path) -> String {
    let cas = if clients == "none" { String::new() } else { format!("client_ca_files = [{ca:?}]\n") };
    format!(
        "[dicom.tls]\nbind = \"127.0.0.1:0\"\ncertificate_file = {:?}\nkey_file = {:?}\nclient_certificates = \"{clients}\"\n{cas}",
        shown.certificate, shown.key
    )
}

fn tls_port(bridge: &Bridge) -> SocketAddr {
    bridge.ready("dicom_tls=").parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

/// How an attempt to associate ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Associated,
    Rejected,
    /// There was no TLS, and so no association.
    NoTls,
}

/// An association for storing CT objects: in the clear, or as `peer` says.
async fn associate(address: SocketAddr, title: &str, peer: Option<&Peer>) -> Result<Association, ScuError> {
    let options = ScuOptions::new(AeTitle::new(title).unwrap(), AeTitle::new("PACSBRIDGE").unwrap());
    let options = ScuOptions { secure: peer.and_then(|peer| towards(peer).unwrap()), ..options };
    let ct = Proposal::new(slices(1, 1, 8)[0].sop_class, vec![TransferSyntax::EXPLICIT_VR_LE]);
    let proposals = [Proposal::plain(sop_class::VERIFICATION), ct];
    Association::connect(&address.ip().to_string(), address.port(), &options, &proposals).await
}

async fn attempt(address: SocketAddr, title: &str, peer: Option<&Peer>) -> Ended {
    match associate(address, title, peer).await {
        Ok(mut open) => {
            open.echo().await.unwrap();
            open.release().await.unwrap();
            Ended::Associated
        }
        Err(ScuError::Rejected(Rejection::CallingAeTitle)) => Ended::Rejected,
        // With TLS 1.3 a caller learns only afterwards that its certificate was refused.
        Err(ScuError::Secure(_) | ScuError::Handshake(_) | ScuError::Transport(_)) => Ended::NoTls,
        Err(other) => panic!("{title}: {other:?}"),
    }
}

#[test]
fn a_title_bound_to_a_certificate_is_let_in_with_it_alone_and_the_certificate_under_no_other_title() {
    let site = site();
    let strange = Authority::new(site.dir.path(), "strange", false);
    let print = site.authority.issue("print", &["print.example"], Kind::Good);
    let named = site.authority.issue("named", &["ct1.example"], Kind::Good);
    let common = site.authority.issue("CT of room 7", &[], Kind::Good);
    let shown: Vec<(&str, Option<Shown>)> = vec![
        ("none", None),
        ("print", Some(print.clone())),
        ("named", Some(named.clone())),
        ("common", Some(common)),
        ("nobody's", Some(site.authority.issue("nobody", &["nobody.example"], Kind::Good))),
        ("expired", Some(site.authority.issue("old", &["ct1.example"], Kind::Expired))),
        ("for servers only", Some(site.authority.issue("server", &["ct1.example"], Kind::ServerOnly))),
        ("of another authority", Some(strange.issue("other", &["ct1.example"], Kind::Good))),
        ("its own authority", Some(self_signed(site.dir.path(), "own", &["ct1.example"]))),
    ];
    let peers = format!(
        "[[peer]]\nae_title = \"PRINT\"\ntls_certificate_sha256 = [\"{}\"]\n[[peer]]\nae_title = \"NAMED\"\ntls_subject = \"CT1.example\"\n\
         [[peer]]\nae_title = \"COMMON\"\ntls_subject = \"CT of room 7\"\n[[peer]]\nae_title = \"FREE\"\n",
        print.sha256
    );
    for clients in ["optional", "required"] {
        let bridge = Bridge::start(&format!("{}{peers}[publish]\nenabled = false\n", site.tls(clients)));
        let runtime = runtime();
        // Who is let in over TLS with which of the certificates that TLS itself lets through.
        let is_let_in = |title: &str, certificate: &str| match certificate {
            "none" => !["PRINT", "NAMED", "COMMON"].contains(&title),
            "print" => title == "PRINT",
            "named" => title == "NAMED",
            "common" => title == "COMMON",
            _ => !["PRINT", "NAMED", "COMMON"].contains(&title),
        };
        for title in ["PRINT", "NAMED", "COMMON", "FREE", "STRANGER"] {
            for (name, certificate) in &shown {
                let peer = site.caller(certificate.as_ref());
                let ended = runtime.block_on(attempt(tls_port(&bridge), title, Some(&peer)));
                let good = ["none", "print", "named", "common", "nobody's"].contains(name);
                let expected = match is_let_in(title, name) {
                    _ if !good || (clients == "required" && *name == "none") => Ended::NoTls,
                    true => Ended::Associated,
                    false => Ended::Rejected,
                };
                assert_eq!(ended, expected, "{title} with the certificate {name}, certificates {clients}");
            }
            let expected = if is_let_in(title, "none") { Ended::Associated } else { Ended::Rejected };
            assert_eq!(runtime.block_on(attempt(bridge.dicom, title, None)), expected, "{title} in the clear");
        }
        // Who does not trust the bridge's own certificate does not talk to it.
        let mistrusting = Site { authority: Authority::new(site.dir.path(), "elsewhere", false), ..self::site() };
        assert_eq!(runtime.block_on(attempt(tls_port(&bridge), "FREE", Some(&mistrusting.caller(None)))), Ended::NoTls);
        let log = bridge.log();
        for words in [
            "AE title PRINT is bound to a certificate, and this call came without TLS",
            "that is right, put it into tls_certificate_sha256",
            "the certificate presented is that of AE title NAMED, which called as FREE",
            "add its authority to dicom.tls.client_ca_files",
            "needs a new certificate",
        ] {
            assert!(log.contains(words), "no word of {words:?} in:\n{log}");
        }
    }
}

/// The first bytes of what a refused caller says come to nothing: it stores without waiting for the answer.
#[test]
fn what_is_refused_stores_nothing() {
    let site = site();
    let bound = site.authority.issue("bound", &["bound.example"], Kind::Good);
    let peers = format!("[[peer]]\nae_title = \"BOUND\"\ntls_certificate_sha256 = [\"{}\"]\n", bound.sha256);
    let bridge = Bridge::start(&format!("{}{peers}[publish]\nenabled = false\n", site.tls("optional")));
    let runtime = runtime();
    runtime.block_on(async {
        let peer = site.caller(Some(&bound));
        assert!(connect(bridge.dicom, "BOUND").await.is_none());
        assert!(associate(tls_port(&bridge), "OTHER", Some(&peer)).await.is_err());
        let mut open = associate(tls_port(&bridge), "BOUND", Some(&peer)).await.unwrap();
        assert_eq!(store(&mut open, &slices(1, 1, 64)[0]).await, Some(dicom_scp::Status::SUCCESS));
        open.release().await.unwrap();
    });
    assert_eq!(bridge.json(&["status"])["instances"], 1);
}

fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the connection is closed, neither reset nor left open");
    rest
}

/// An A-ASSOCIATE-RQ, as far as it matters: its type, and more bytes than anybody reads at once.
const PLAIN: [u8; 700] = {
    let mut pdu = [0; 700];
    (pdu[0], pdu[4], pdu[5]) = (0x01, 0x02, 0xB6);
    pdu
};
/// The beginning of a record with a ClientHello.
const HELLO: [u8; 11] = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xFC, 0x03, 0x03];

#[test]
fn who_comes_to_the_wrong_port_is_turned_away_in_order_and_the_log_says_what_to_do() {
    let site = site();
    let bridge = Bridge::start(&format!("{}[publish]\nenabled = false\n", site.tls("none")));
    let mut hello = TcpStream::connect(bridge.dicom).unwrap();
    hello.write_all(&HELLO).unwrap();
    assert_eq!(read_to_end(&mut hello), b"");
    let mut plain = TcpStream::connect(tls_port(&bridge)).unwrap();
    plain.write_all(&PLAIN).unwrap();
    assert_eq!(read_to_end(&mut plain), b"");
    let mut noise = TcpStream::connect(tls_port(&bridge)).unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(read_to_end(&mut noise), b"");
    // A real TLS client on the plain port, and a real DICOM client on the TLS port.
    let runtime = runtime();
    assert_eq!(runtime.block_on(attempt(bridge.dicom, "CT1", Some(&site.caller(None)))), Ended::NoTls);
    assert!(runtime.block_on(connect(tls_port(&bridge), "CT1")).is_none());
    let log = bridge.log();
    for words in ["let the caller use the TLS port", "plain DICOM on the TLS port", "neither TLS nor DICOM"] {
        assert!(log.contains(words), "no word of {words:?} in:\n{log}");
    }
}

#[test]
fn slow_handshakes_keep_nobody_out_and_associations_of_both_ports_count_together() {
    let site = site();
    let limits = "[dicom]\nartim_timeout_ms = 600000\nassociations_max = 2\n";
    let bridge = Bridge::start(&format!("{limits}{}[publish]\nenabled = false\n", site.tls("none")));
    let port = tls_port(&bridge);
    let slow: Vec<TcpStream> = (0..400)
        .map(|n| {
            let mut stream = TcpStream::connect(port).unwrap();
            stream.write_all(&HELLO[..n % HELLO.len()]).unwrap();
            stream
        })
        .collect();
    let peer = site.caller(None);
    runtime().block_on(async {
        let plain = associate(bridge.dicom, "CT1", None).await.unwrap();
        let over_tls = associate(port, "CT1", Some(&peer)).await.unwrap();
        for (address, peer) in [(bridge.dicom, None), (port, Some(&peer))] {
            let third = associate(address, "CT1", peer).await;
            assert!(matches!(third, Err(ScuError::Rejected(Rejection::LocalLimitExceeded))), "a third association");
        }
        plain.release().await.unwrap();
        over_tls.release().await.unwrap();
    });
    drop(slow);
}

#[test]
fn a_handshake_that_is_not_finished_in_time_is_ended() {
    let site = site();
    let limits = "[dicom]\nartim_timeout_ms = 300\n";
    let bridge = Bridge::start(&format!("{limits}{}[publish]\nenabled = false\n", site.tls("none")));
    let mut slow = TcpStream::connect(tls_port(&bridge)).unwrap();
    slow.write_all(&HELLO).unwrap();
    let mut rest = Vec::new();
    slow.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let ended = slow.read_to_end(&mut rest);
    assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "the connection is left open");
}

fn check(toml: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bridge.toml");
    std::fs::write(&path, toml).unwrap();
    let output = Command::new(binary()).arg("--config").arg(&path).arg("check").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn mistakes_in_the_files_are_said_with_all_others() {
    let site = site();
    let other = site.authority.issue("other", &["other.example"], Kind::Good);
    let nothing = site.dir.path().join("nothing.pem");
    let empty = site.dir.path().join("empty.pem");
    std::fs::write(&empty, "no certificate\n").unwrap();
    let crossed = Shown { key: other.key.clone(), ..site.shown.clone() };
    let peer = format!(
        "[[peer]]\nae_title = \"A\"\nhost = \"a\"\nport = 104\ntls = true\ntls_ca_files = [{nothing:?}]\ntls_server_name = \"*\"\n\
         tls_client_certificate_file = {empty:?}\ntls_client_key_file = {nothing:?}\n"
    );
    let words = check(&format!("{}{peer}[nonsense]\nx = 1\n", tls_lines(&crossed, "required", &empty)));
    for part in [
        "dicom.tls.key_file: ",
        "is not the key of the certificate",
        "dicom.tls.client_ca_files: ",
        "holds no certificate",
        "peer[1].tls_ca_files: ",
        "peer[1].tls_server_name: ",
        "peer[1].tls_client_certificate_file: ",
        "peer[1].tls_client_key_file: ",
        "nonsense: ",
    ] {
        assert!(words.contains(part), "no word of {part:?} in:\n{words}");
    }
}

#[test]
fn certificates_are_read_again_on_sighup_and_kept_when_they_are_damaged() {
    let site = site();
    let (next, used) = (site.authority.issue("next", &["127.0.0.1"], Kind::Good), site.shown.clone());
    let bridge = Bridge::start(&format!("{}{}[publish]\nenabled = false\n", NO_PLAIN_DICOM, site.tls("none")));
    let (runtime, port) = (runtime(), tls_port(&bridge));
    let knows = |shown: &Shown| {
        let mut peer = site.caller(None);
        let bytes: Vec<u8> = hex::decode(&shown.sha256).unwrap();
        peer.tls_certificate_sha256 = vec![bytes.try_into().unwrap()];
        runtime.block_on(attempt(port, "CT1", Some(&peer)))
    };
    assert_eq!((knows(&used), knows(&next)), (Ended::Associated, Ended::NoTls));
    next.copy_to(&used);
    bridge.hang_up();
    wait_for("the new certificate", || bridge.log().contains("are read again"));
    assert_eq!((knows(&used), knows(&next)), (Ended::NoTls, Ended::Associated));
    std::fs::write(&used.key, "nothing").unwrap();
    bridge.hang_up();
    wait_for("the damage to be noticed", || bridge.log().contains("those before stay in use"));
    assert_eq!(knows(&next), Ended::Associated);
}

fn data_sets(dir: &Path) -> HashMap<String, Vec<u8>> {
    let files = files_below(dir);
    files.iter().map(|path| (bridge::site::describe_file(path).unwrap().0.to_string(), data_set(path))).collect()
}

#[test]
fn dcmtk_stores_finds_and_moves_over_tls() {
    if !["storescu", "findscu", "movescu", "echoscu", "storescp", "openssl"].iter().all(|tool| have(tool)) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority", true);
    let shown = authority.issue("bridge", &["127.0.0.1"], Kind::Good);
    let (modality, keeper) = (
        authority.issue("modality", &["ct1.example"], Kind::Good),
        authority.issue("keeper", &["127.0.0.1"], Kind::Good),
    );
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let with = |shown: &Shown| {
        ["+tls", &path(&shown.key), &path(&shown.certificate), "+cf", &path(&authority.certificate)].map(str::to_owned)
    };
    let keeper_arguments = with(&keeper);
    let Some(scp) = StoreScp::start_with("KEEPER", &keeper_arguments.each_ref().map(String::as_str)) else { return };
    let peers = format!(
        "[[peer]]\nae_title = \"CT1\"\ntls_subject = \"ct1.example\"\n[[peer]]\nae_title = \"MOVER\"\n[[peer]]\nae_title = \"KEEPER\"\nhost = \"127.0.0.1\"\nport = {}\n\
         tls = true\ntls_ca_files = [{:?}]\ntls_certificate_sha256 = [\"{}\"]\n",
        scp.address.port(),
        authority.certificate,
        keeper.sha256,
    );
    let lines = tls_lines(&shown, "required", &authority.certificate);
    let mut bridge = Bridge::start(&format!("{lines}{peers}[publish]\nenabled = false\n"));
    let (host, port) = (bridge.dicom.ip().to_string(), tls_port(&bridge).port().to_string());
    let as_ct1 = |tool: &str| {
        let mut command = dcmtk(tool);
        command.args(with(&modality)).args(["-aet", "CT1", "-aec", "PACSBRIDGE", &host, &port]);
        command
    };
    run(&mut as_ct1("echoscu"));
    let refused = |command: &mut Command| !command.output().unwrap().status.success();
    assert!(refused(dcmtk("echoscu").args(with(&keeper)).args(["-aet", "CT1", "-aec", "PACSBRIDGE", &host, &port])));
    assert!(refused(dcmtk("echoscu").args(with(&modality)).args(["-aet", "CT2", "-aec", "PACSBRIDGE", &host, &port])));
    assert!(refused(dcmtk("echoscu").args(["-aet", "CT1", "-aec", "PACSBRIDGE", &host, &port])), "in the clear");

    let sent_dir = tempfile::tempdir().unwrap();
    write_files(sent_dir.path(), &slices(1, 12, 128));
    let sent = data_sets(sent_dir.path());
    run(as_ct1("storescu").args(["+sd", "+r"]).arg(sent_dir.path()));
    let study = format!("StudyInstanceUID={}", subject(1).study_uid);
    let keys = ["-S", "-k", "QueryRetrieveLevel=STUDY", "-k", &study, "-k", "PatientName"];
    let found = run(as_ct1("findscu").args(keys));
    let words = String::from_utf8_lossy(&found.stderr).into_owned() + &String::from_utf8_lossy(&found.stdout);
    assert!(words.contains("Zyxwquist"), "{words}");
    // DCMTK's movescu speaks no TLS: it asks in the clear, and what it asks for goes to the keeper over TLS.
    let plain = bridge.dicom.port().to_string();
    let mut mover = dcmtk("movescu");
    mover.args(["-aet", "MOVER", "-aec", "PACSBRIDGE", "-aem", "KEEPER", &host, &plain]);
    run(mover.args(&keys[..5]));
    assert!(data_sets(scp.dir.path()) == sent, "C-MOVE over TLS brought other bytes");

    // The bridge as a client, and a destination that shows another certificate than the one that is listed.
    bridge.json(&["echo", "KEEPER"]);
    let answer = bridge.json(&["send", "KEEPER", path(sent_dir.path()).as_str()]);
    assert_eq!(answer["sent"], 12);
    bridge.terminate();
    let wrong = peers.replace(&keeper.sha256, &modality.sha256);
    bridge.reconfigure(&format!("{lines}{wrong}[publish]\nenabled = false\n"), Vec::new());
    bridge.run();
    let output = bridge.cli(&["echo", "KEEPER"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("tls_certificate_sha256 does not list"), "{words}");
}

const PYNETDICOM: &str = r#"
import ssl, sys
from pynetdicom import AE
from pynetdicom.sop_class import Verification
ca, cert, key, port, version = sys.argv[1:]
context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
context.load_cert_chain(cert, key)
context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
ae = AE(ae_title="CT1")
ae.add_requested_context(Verification)
assoc = ae.associate("127.0.0.1", int(port), ae_title="PACSBRIDGE", tls_args=(context, "127.0.0.1"))
assert assoc.is_established, "no association"
assert assoc.send_c_echo().Status == 0
assoc.release()
"#;

#[test]
fn pynetdicom_associates_over_tls_1_2_and_1_3() {
    let Some(python) = python() else { return };
    let site = site();
    let modality = site.authority.issue("modality", &["ct1.example"], Kind::Good);
    let peers = "[[peer]]\nae_title = \"CT1\"\ntls_subject = \"ct1.example\"\n";
    let bridge = Bridge::start(&format!("{}{peers}[publish]\nenabled = false\n", site.tls("required")));
    let command = |version: &str| {
        let mut command = Command::new(&python);
        command.args(["-c", PYNETDICOM]).args([&site.authority.certificate, &modality.certificate, &modality.key]);
        command.args([&tls_port(&bridge).port().to_string(), version]);
        command
    };
    for version in ["TLSv1_2", "TLSv1_3"] {
        run(&mut command(version));
    }
    assert!(!command("TLSv1_1").output().unwrap().status.success(), "TLS 1.1 is not spoken");
}
