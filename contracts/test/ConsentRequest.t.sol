// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {Consent} from "../solidity/Consent.sol";
import {IConsent} from "../solidity/interfaces/IConsent.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";

/// @dev request and deny.
contract ConsentRequestTest is Base {
    bytes32 internal constant ID = keccak256("study");

    function setUp() public override {
        super.setUp();
        _defineStudy(alice, ID);
    }

    function _request(address who) internal {
        vm.prank(who);
        consent.request(ID, IConsent.Mode.Full, 1, "notes", PGP_KEY);
    }

    function test_RevertWhen_deployedWithoutRegistry() public {
        vm.expectRevert(IConsent.ZeroAddress.selector);
        new Consent(address(0));
    }

    function test_RevertWhen_theStudyIsUnknownOrDead() public {
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyUnknown.selector, bytes32("x")));
        consent.request("x", IConsent.Mode.Full, 1, "notes", PGP_KEY);
        studies.tombstone(ID, 1, NOW, _signTombstone(OWNER_KEY, ID, 1, NOW));
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
        consent.request(ID, IConsent.Mode.Full, 1, "notes", PGP_KEY);
    }

    function test_RevertWhen_nothingIsAskedFor() public {
        vm.prank(bob);
        vm.expectRevert(IConsent.NoMode.selector);
        consent.request(ID, IConsent.Mode.None, 1, "notes", PGP_KEY);
    }

    function test_RevertWhen_theKeyIsEmptyOrTooLong() public {
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IConsent.EncryptionKeyLength.selector, 0));
        consent.request(ID, IConsent.Mode.Full, 1, "notes", "");
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IConsent.EncryptionKeyLength.selector, 1025));
        consent.request(ID, IConsent.Mode.Full, 1, "notes", new bytes(1025));
    }

    /// A fault of published systems: the key of who asks is not recorded, so whoever delivers can be given another one.
    function testFuzz_theKeyIsRecorded(bytes calldata key) public {
        vm.assume(key.length > 0 && key.length <= 1024);
        vm.expectEmit(true, true, false, true, address(consent));
        emit IConsent.AccessRequested(ID, bob, 1, IConsent.Mode.Preview, 3, "notes", key);
        vm.prank(bob);
        consent.request(ID, IConsent.Mode.Preview, 3, "notes", key);
        assertEq(consent.getGrant(ID, bob).requestedKey, keccak256(key));
        assertEq(_state(ID, bob), IConsent.Trace.Requested);
        assertFalse(_granted(ID, bob));
    }

    /// One open request per study and grantee, with a rising number: asking again takes no more room.
    function test_repeatingReplaces() public {
        _request(bob);
        vm.expectEmit(true, true, false, true, address(consent));
        emit IConsent.AccessRequested(ID, bob, 2, IConsent.Mode.Full, 1, "notes", "new key");
        vm.prank(bob);
        consent.request(ID, IConsent.Mode.Full, 1, "notes", "new key");
        assertEq(consent.getGrant(ID, bob).requests, 2);
        assertEq(consent.getGrant(ID, bob).requestedKey, keccak256("new key"));
    }

    /// A research key is nobody's operator: it asks for itself.
    function test_anAccountThatIsNoSourceAsksForItself() public {
        _request(mallory);
        assertEq(_state(ID, mallory), IConsent.Trace.Requested);
        assertEq(_state(ID, bob), IConsent.Trace.NotAuthorised);
    }

    /// The grant outlives the operator's key.
    function test_anOperatorAsksForItsSource() public {
        _request(_addOperator(bob, 300));
        assertEq(_state(ID, bob), IConsent.Trace.Requested);
        assertEq(_state(ID, vm.addr(300)), IConsent.Trace.NotAuthorised);
    }

    function test_RevertWhen_denyingWhatNobodyAsked() public {
        bytes memory signature = _signDeny(OWNER_KEY, ID, bob, 4, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(IConsent.NothingRequested.selector, ID, bob));
        consent.deny(ID, bob, 4, 0, 1, NOW, signature);
    }

    function testFuzz_RevertWhen_anotherDenies(uint256 key) public {
        key = 1000 + key % (SECP256K1_ORDER - 1000);
        _request(bob);
        bytes memory signature = _signDeny(key, ID, bob, 4, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        consent.deny(ID, bob, 4, 0, 1, NOW, signature);
    }

    function testFuzz_denyingLeavesAReason(uint16 reason, address sender) public {
        _request(bob);
        vm.expectEmit(true, true, true, true, address(consent));
        emit IConsent.AccessDenied(ID, bob, owner, 1, reason, 0);
        bytes memory signature = _signDeny(OWNER_KEY, ID, bob, reason, 1, NOW);
        vm.prank(sender);
        consent.deny(ID, bob, reason, 0, 1, NOW, signature);
        (IConsent.Trace state, uint16 found, uint32 seq) = consent.trace(ID, bob);
        assertEq(state, IConsent.Trace.Denied);
        assertEq(found, reason);
        assertEq(seq, 1);
        // Asking again is possible; the answer cannot be played again.
        _request(bob);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 1, 1));
        consent.deny(ID, bob, reason, 0, 1, NOW, signature);
        assertEq(_state(ID, bob), IConsent.Trace.Requested);
    }

    /// A denial refuses the request, not what was granted before it.
    function test_denyingMoreLeavesTheGrant() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        a.mode = IConsent.Mode.Preview;
        _allow(OWNER_KEY, a);
        _request(bob);
        consent.deny(ID, bob, 3, 0, 2, NOW, _signDeny(OWNER_KEY, ID, bob, 3, 2, NOW));
        assertEq(_state(ID, bob), IConsent.Trace.Authorised);
        assertTrue(_mode(ID, bob) == IConsent.Mode.Preview);
    }
}
