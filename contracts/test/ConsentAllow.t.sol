// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IConsent} from "../solidity/interfaces/IConsent.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";

/// @dev allow, revoke, and what isAllowed and trace make of them.
contract ConsentAllowTest is Base {
    bytes32 internal constant ID = keccak256("study");
    uint256 internal constant NEXT_KEY = 201;
    address internal immutable next = vm.addr(NEXT_KEY);

    function setUp() public override {
        super.setUp();
        _defineStudy(alice, ID);
    }

    function _refused(IConsent.Allowance memory a, bytes memory signature, bytes memory refusal) internal {
        vm.expectRevert(refusal);
        consent.allow(a, signature);
    }

    function test_RevertWhen_theStudyIsUnknownOrDead() public {
        IConsent.Allowance memory a = _allowance("x", bob, 1);
        _refused(a, _signAllow(OWNER_KEY, a), abi.encodeWithSelector(IStudies.StudyUnknown.selector, bytes32("x")));
        studies.tombstone(ID, 1, NOW, _signTombstone(OWNER_KEY, ID, 1, NOW));
        a.studyId = ID;
        _refused(a, _signAllow(OWNER_KEY, a), abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
        bytes memory signature = _signRevoke(OWNER_KEY, ID, bob, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
        consent.revoke(ID, bob, 1, NOW, signature);
    }

    function test_RevertWhen_itMakesNoSense() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        a.mode = IConsent.Mode.None;
        _refused(a, _signAllow(OWNER_KEY, a), abi.encodeWithSelector(IConsent.NoMode.selector));
        a.mode = IConsent.Mode.Full;
        a.grantee = address(0);
        _refused(a, _signAllow(OWNER_KEY, a), abi.encodeWithSelector(IConsent.ZeroAddress.selector));
        a.grantee = bob;
        (a.notBefore, a.notAfter) = (NOW + 2, NOW + 1);
        _refused(a, _signAllow(OWNER_KEY, a), abi.encodeWithSelector(IConsent.BadPeriod.selector, NOW + 2, NOW + 1));
        (a.notBefore, a.notAfter) = (NOW - 2, NOW - 1);
        _refused(a, _signAllow(OWNER_KEY, a), abi.encodeWithSelector(IConsent.BadPeriod.selector, NOW - 2, NOW - 1));
        a.seq = 0;
        a.notAfter = NOW;
        _refused(a, _signAllow(OWNER_KEY, a), abi.encodeWithSelector(ISigned.SeqNotRising.selector, 0, 0));
    }

    function testFuzz_RevertWhen_anotherSigned(uint256 key) public {
        key = 1000 + key % (SECP256K1_ORDER - 1000);
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        _refused(a, _signAllow(key, a), abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        assertFalse(_granted(ID, bob));
    }

    function testFuzz_RevertWhen_theSignatureIsGarbage(bytes memory signature) public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        _refused(a, signature, abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
    }

    /// The source holds the bytes and sends the transactions, but it cannot consent.
    function test_RevertWhen_theSourceOrTheGranteeSigned() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, owner);
        _refused(a, _signAllow(101, a), refusal);
        _refused(a, _signAllow(102, a), refusal);
        vm.prank(alice);
        _refused(a, "", refusal);
    }

    function test_RevertWhen_anyFieldIsNotTheSignedOne() public {
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, owner);
        _defineStudy(alice, "other");
        bytes memory signature = _signAllow(OWNER_KEY, _allowance(ID, bob, 5));
        for (uint256 field = 0; field < 11; ++field) {
            IConsent.Allowance memory a = _allowance(ID, bob, 5);
            if (field == 0) a.studyId = "other";
            if (field == 1) a.grantee = mallory;
            if (field == 2) a.series = "series";
            if (field == 3) a.mode = IConsent.Mode.Preview;
            if (field == 4) a.notBefore -= 1;
            if (field == 5) a.notAfter += 1;
            if (field == 6) a.purpose = 1;
            if (field == 7) a.notes = 0;
            if (field == 8) a.encryptionKey = "swapped";
            if (field == 9) a.seq = 6;
            if (field == 10) a.deadline += 1;
            _refused(a, signature, refusal);
        }
        consent.allow(_allowance(ID, bob, 5), signature);
    }

    function test_theDeadlineIsKeptToTheSecond() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        bytes memory signature = _signAllow(OWNER_KEY, a);
        bytes memory revocation = _signRevoke(OWNER_KEY, ID, bob, 2, NOW + 5);
        vm.warp(NOW + 1);
        _refused(a, signature, abi.encodeWithSelector(ISigned.DeadlinePassed.selector, NOW));
        vm.warp(NOW);
        consent.allow(a, signature);
        vm.warp(NOW + 6);
        vm.expectRevert(abi.encodeWithSelector(ISigned.DeadlinePassed.selector, NOW + 5));
        consent.revoke(ID, bob, 2, NOW + 5, revocation);
        vm.warp(NOW + 5);
        consent.revoke(ID, bob, 2, NOW + 5, revocation);
    }

    function test_aGrantHoldsFromItsFirstToItsLastSecond() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        (a.notBefore, a.notAfter) = (NOW + 10, NOW + 20);
        _allow(OWNER_KEY, a);
        assertEq(_state(ID, bob), IConsent.Trace.Accepted);
        vm.warp(NOW + 9);
        assertFalse(_granted(ID, bob));
        vm.warp(NOW + 10);
        (IConsent.Mode mode, bool emergency, uint64 until) = consent.isAllowed(ID, 0, bob, 0);
        assertTrue(mode == IConsent.Mode.Full && !emergency && until == NOW + 20);
        assertEq(_state(ID, bob), IConsent.Trace.Authorised);
        vm.warp(NOW + 20);
        assertTrue(_granted(ID, bob));
        vm.warp(NOW + 21);
        assertFalse(_granted(ID, bob));
        assertEq(_state(ID, bob), IConsent.Trace.NotAuthorised);
    }

    function testFuzz_aSeriesIsNotTheStudy(bytes32 series, bytes32 other) public {
        vm.assume(series != 0 && other != series);
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        a.series = series;
        _allow(OWNER_KEY, a);
        (IConsent.Mode mode,,) = consent.isAllowed(ID, series, bob, 0);
        assertTrue(mode == IConsent.Mode.Full);
        (mode,,) = consent.isAllowed(ID, other, bob, 0);
        assertTrue(mode == IConsent.Mode.None);
        assertFalse(_granted(ID, bob));
    }

    function testFuzz_aPurposeIsNotAnother(uint16 purpose, uint16 other) public {
        vm.assume(purpose != 0 && other != purpose);
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        a.purpose = purpose;
        _allow(OWNER_KEY, a);
        (IConsent.Mode mode,,) = consent.isAllowed(ID, 0, bob, purpose);
        assertTrue(mode == IConsent.Mode.Full);
        (mode,,) = consent.isAllowed(ID, 0, bob, other);
        assertTrue(mode == IConsent.Mode.None);
        // Without a purpose it holds for any, and for any series.
        _allow(OWNER_KEY, _allowance(ID, bob, 2));
        (mode,,) = consent.isAllowed(ID, "series", bob, other);
        assertTrue(mode == IConsent.Mode.Full);
    }

    function test_everythingSignedIsRecordedOrTold() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 9);
        (a.series, a.purpose, a.mode) = ("series", 3, IConsent.Mode.Preview);
        vm.expectEmit(true, true, true, true, address(consent));
        emit IConsent.AccessAllowed(
            ID, bob, owner, 9, "series", a.mode, NOW, NOW + 1000, 3, a.notes, keccak256(PGP_KEY)
        );
        _allow(OWNER_KEY, a);
        IConsent.Grant memory g = consent.getGrant(ID, bob);
        assertTrue(g.decision == IConsent.Decision.Allowed && g.mode == IConsent.Mode.Preview);
        assertTrue(g.seq == 9 && g.purpose == 3 && g.notBefore == NOW && g.notAfter == NOW + 1000);
        assertEq(g.series, "series");
        assertEq(g.encryptionKey, keccak256(PGP_KEY));
    }

    /// Nobody but the named grantee gets anything, and nothing of another study.
    function testFuzz_aGrantIsForOneGranteeAndOneStudy(address other) public {
        vm.assume(other != bob);
        _defineStudy(alice, "other");
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        assertFalse(_granted(ID, other));
        assertFalse(_granted("other", bob));
    }

    function testFuzz_RevertWhen_theSeqDoesNotRise(uint32 current, uint32 given) public {
        vm.assume(current != 0 && given <= current);
        _allow(OWNER_KEY, _allowance(ID, bob, current));
        bytes memory refusal = abi.encodeWithSelector(ISigned.SeqNotRising.selector, current, given);
        IConsent.Allowance memory a = _allowance(ID, bob, given);
        _refused(a, _signAllow(OWNER_KEY, a), refusal);
        bytes memory signature = _signRevoke(OWNER_KEY, ID, bob, given, NOW);
        vm.expectRevert(refusal);
        consent.revoke(ID, bob, given, NOW, signature);
        signature = _signDeny(OWNER_KEY, ID, bob, 0, given, NOW);
        vm.expectRevert(refusal);
        consent.deny(ID, bob, 0, 0, given, NOW, signature);
    }

    function test_revokedStaysRevokedUntilANewerAllow() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        bytes memory signature = _signAllow(OWNER_KEY, a);
        consent.allow(a, signature);
        vm.expectEmit(true, true, true, true, address(consent));
        emit IConsent.AccessRevoked(ID, bob, owner, 2);
        _revoke(OWNER_KEY, ID, bob, 2);
        assertFalse(_granted(ID, bob));
        assertEq(_state(ID, bob), IConsent.Trace.Removed);
        _refused(a, signature, abi.encodeWithSelector(ISigned.SeqNotRising.selector, 2, 1));
        _allow(OWNER_KEY, _allowance(ID, bob, 3));
        assertTrue(_granted(ID, bob));
    }

    /// The owner thinks better of it before the allow was sent.
    function test_revokingVoidsAnAllowThatWasNotSent() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        bytes memory signature = _signAllow(OWNER_KEY, a);
        _revoke(OWNER_KEY, ID, bob, 2);
        _refused(a, signature, abi.encodeWithSelector(ISigned.SeqNotRising.selector, 2, 1));
        assertEq(_state(ID, bob), IConsent.Trace.Removed);
    }

    function test_tombstonedStudiesAreNobodys() public {
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        studies.tombstone(ID, 1, NOW, _signTombstone(OWNER_KEY, ID, 1, NOW));
        assertFalse(_granted(ID, bob));
        assertEq(_state(ID, bob), IConsent.Trace.Removed);
    }

    /// The consortium shuts out a site that was broken into; that opens nothing, and it ends when the suspension ends.
    function test_suspendedSourcesSeeNothing() public {
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        _suspend(bob);
        assertFalse(_granted(ID, bob));
        vm.prank(admin);
        sources.reinstate(bob);
        assertTrue(_granted(ID, bob));
    }

    /// Grants are the patient's decisions and survive a change of key; what the former owner signed and nobody sent does not.
    function test_aNewOwnerInheritsGrantsAndNothingUnsent() public {
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        IConsent.Allowance memory unsent = _allowance(ID, mallory, 1);
        bytes memory signature = _signAllow(OWNER_KEY, unsent);
        studies.transfer(ID, next, false, 1, NOW, _signTransfer(OWNER_KEY, ID, next, 1, NOW));
        assertTrue(_granted(ID, bob));
        _refused(unsent, signature, abi.encodeWithSelector(ISigned.BadSignature.selector, next));
        bytes memory late = _signRevoke(OWNER_KEY, ID, bob, 2, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, next));
        consent.revoke(ID, bob, 2, NOW, late);
        _revoke(NEXT_KEY, ID, bob, 2);
        assertFalse(_granted(ID, bob));
    }

    /// The words of the PCIM paper, in the order of a whole story.
    function test_traceTellsTheStory() public {
        assertEq(_state(ID, bob), IConsent.Trace.NotAuthorised);
        vm.prank(bob);
        consent.request(ID, IConsent.Mode.Full, 1, 0, PGP_KEY);
        assertEq(_state(ID, bob), IConsent.Trace.Requested);
        consent.deny(ID, bob, 4, 0, 1, NOW, _signDeny(OWNER_KEY, ID, bob, 4, 1, NOW));
        assertEq(_state(ID, bob), IConsent.Trace.Denied);
        vm.prank(bob);
        consent.request(ID, IConsent.Mode.Full, 1, 0, PGP_KEY);
        IConsent.Allowance memory a = _allowance(ID, bob, 2);
        a.notBefore = NOW + 1;
        _allow(OWNER_KEY, a);
        assertEq(_state(ID, bob), IConsent.Trace.Accepted);
        vm.warp(NOW + 1);
        assertEq(_state(ID, bob), IConsent.Trace.Authorised);
        vm.warp(NOW);
        _revoke(OWNER_KEY, ID, bob, 3);
        assertEq(_state(ID, bob), IConsent.Trace.Removed);
        assertEq(_state("unknown", bob), IConsent.Trace.NotAuthorised);
    }

    function testFuzz_anybodySendsTheOwnersWord(address sender, uint32 seq) public {
        vm.assume(seq != 0 && seq < type(uint32).max);
        IConsent.Allowance memory a = _allowance(ID, bob, seq);
        bytes memory signature = _signAllow(OWNER_KEY, a);
        vm.prank(sender);
        consent.allow(a, signature);
        assertTrue(_granted(ID, bob));
        signature = _signRevoke(OWNER_KEY, ID, bob, seq + 1, NOW);
        vm.prank(sender);
        consent.revoke(ID, bob, seq + 1, NOW, signature);
        assertFalse(_granted(ID, bob));
    }

    /// The owner may send instead of sign; number and deadline count all the same.
    function test_theOwnerMaySend() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        vm.prank(owner);
        consent.allow(a, "");
        vm.prank(owner);
        _refused(a, "", abi.encodeWithSelector(ISigned.SeqNotRising.selector, 1, 1));
        vm.prank(owner);
        consent.revoke(ID, bob, 2, NOW, "");
        assertFalse(_granted(ID, bob));
    }
}
