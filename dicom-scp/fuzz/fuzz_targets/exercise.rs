//! What must hold for any bytes, shared by the fuzz targets and the replay on stable.

use dicom_scp::{
    Encoding, Tag, TransferSyntax,
    dataset::{ReadEnd, ReadOptions, Scanner, read},
    dimse::Command,
    matching::{Query, QueryContext, matches},
    message::{Assembler, Inbox, Incoming, Taken},
    sop_class::Model,
    transcode::Transcoder,
};

/// The first byte chooses the encoding, the second the size of the pieces; the rest is the data set.
pub(crate) fn dataset(input: &[u8]) {
    let Some((&[mode, size], bytes)) = input.split_first_chunk::<2>() else { return };
    let syntax = [TransferSyntax::IMPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_BE]
        [usize::from(mode % 3)];
    let options = ReadOptions {
        stop_at: (mode & 0x80 != 0).then_some(Tag(0x7fe0, 0x0010)),
        value_bytes_max: 256,
        depth_max: 8,
        elements_max: 1000,
    };
    let Ok((data_set, end)) = read(bytes, syntax.encoding(), &options) else { return };

    let mut scanner = Scanner::new(syntax, options, 1 << 16);
    if bytes.chunks(usize::from(size.max(1))).all(|chunk| scanner.push(chunk).is_ok()) {
        assert_eq!(scanner.finish().0, data_set, "pieces make no difference");
    }

    let unlimited = ReadOptions { elements_max: 100_000, depth_max: 20, ..ReadOptions::default() };
    for encoding in [Encoding::ImplicitLe, Encoding::ExplicitLe, Encoding::ExplicitBe] {
        let (once, end) = read(&data_set.write(encoding), encoding, &unlimited).expect("what we write can be read");
        assert_eq!(end, ReadEnd::Complete);
        let (twice, _) = read(&once.write(encoding), encoding, &unlimited).expect("what we write can be read");
        assert_eq!(once, twice, "writing changes nothing the second time");
    }
    let plain = [TransferSyntax::IMPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_LE];
    for (from, to) in [(plain[0], plain[1]), (plain[1], plain[0])] {
        let mut transcoder = Transcoder::new(&from, &to).expect("both are plain");
        let mut out = Vec::new();
        // Cut or damaged data sets are errors, never panics.
        let _ = transcoder.push(bytes, &mut out).and_then(|()| transcoder.finish(&mut out));
    }
    let mut utf8 = data_set.clone();
    utf8.transcode_to_utf8();
    for (tag, _) in &data_set {
        data_set.texts(*tag);
        data_set.ints(*tag);
        data_set.floats(*tag);
        data_set.uid(*tag);
    }
    if end == ReadEnd::Complete {
        query(&data_set);
    }
}

fn query(identifier: &dicom_scp::DataSet) {
    let context = QueryContext { model: Model::PatientRoot, relational: true, combined_date_time: true };
    if let Ok(query) = Query::parse(identifier, &context) {
        matches(identifier, &query);
        query.project(identifier);
    }
}

/// A byte stream of an association, and the same bytes as a command set.
pub(crate) fn message(input: &[u8]) {
    if let Ok(parsed) = Command::parse(input) {
        let again = |command: &Command| Command::parse(&command.encode(parsed.has_data_set)).expect("ours is valid");
        let once = again(&parsed.command);
        assert_eq!(again(&once.command), once, "encoding changes nothing the second time");
    }
    let Some((&size, bytes)) = input.split_first() else { return };
    let (mut inbox, mut assembler) = (Inbox::new(16_384), Assembler::new(0..=255));
    for chunk in bytes.chunks(usize::from(size.max(1))) {
        inbox.buffer().extend_from_slice(chunk);
        loop {
            match inbox.take() {
                Ok(Taken::Incoming(Incoming::Fragment(fragment))) => {
                    if assembler.push(fragment).is_err() {
                        return;
                    }
                }
                Ok(Taken::Incoming(_)) => {}
                Ok(Taken::NeedBytes(bytes)) => {
                    assert!(bytes > 0 && bytes <= 16_384 + 4, "progress is always possible");
                    break;
                }
                Err(_) => return,
            }
        }
    }
}
