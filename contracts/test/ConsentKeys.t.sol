// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IConsent} from "../solidity/interfaces/IConsent.sol";

/// @dev askKeys and deliverKeys.
contract ConsentKeysTest is Base {
    bytes32 internal constant ID = keccak256("study");
    bytes internal constant ONE_TIME_KEY = "another OpenPGP key";
    uint64 internal constant UNTIL = NOW + 3600;

    function setUp() public override {
        super.setUp();
        _defineStudy(alice, ID);
    }

    function _askRefused(address who, bytes32 id, bytes memory refusal) internal {
        vm.prank(who);
        vm.expectRevert(refusal);
        consent.askKeys(id, ONE_TIME_KEY);
    }

    function _deliverRefused(address who, address grantee, uint64 until, bytes memory envelope, bytes memory refusal)
        internal
    {
        vm.prank(who);
        vm.expectRevert(refusal);
        consent.deliverKeys(ID, grantee, keccak256(ONE_TIME_KEY), until, envelope);
    }

    function _notAllowed(address grantee) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(IConsent.NotAllowed.selector, ID, grantee);
    }

    /// Whatever ends a grant ends asking and answering at the same moment.
    function _neither(address grantee) internal {
        _askRefused(grantee, ID, _notAllowed(grantee));
        _deliverRefused(alice, grantee, uint64(block.timestamp) + 1, "e", _notAllowed(grantee));
    }

    function test_RevertWhen_nothingIsAllowed() public {
        _neither(bob);
        _askRefused(bob, "x", abi.encodeWithSelector(IConsent.NotAllowed.selector, bytes32("x"), bob));
        vm.prank(bob);
        consent.request(ID, IConsent.Mode.Full, 1, "notes", PGP_KEY);
        _neither(bob);
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        _neither(mallory);
        _revoke(OWNER_KEY, ID, bob, 2);
        _neither(bob);
    }

    function test_RevertWhen_theGrantIsOverOrHasNotBegun() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        a.notBefore = NOW + 10;
        _allow(OWNER_KEY, a);
        _neither(bob);
        vm.warp(NOW + 10);
        vm.prank(bob);
        consent.askKeys(ID, ONE_TIME_KEY);
        vm.warp(a.notAfter + 1);
        _neither(bob);
    }

    function test_RevertWhen_theStudyOrTheGranteeIsShutOut() public {
        _allow(OWNER_KEY, _allowance(ID, mallory, 1));
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        _suspend(bob);
        // A suspended source speaks for itself alone, and nothing is allowed to it.
        _neither(bob);
        studies.tombstone(ID, 1, NOW, _signTombstone(OWNER_KEY, ID, 1, NOW));
        _neither(mallory);
    }

    function test_RevertWhen_theKeyIsEmptyOrTooLong() public {
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IConsent.EncryptionKeyLength.selector, 0));
        consent.askKeys(ID, "");
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IConsent.EncryptionKeyLength.selector, 1025));
        consent.askKeys(ID, new bytes(1025));
    }

    function test_RevertWhen_somebodyElseThanTheSourceAnswers() public {
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        address[3] memory others = [bob, mallory, owner];
        for (uint256 i = 0; i < others.length; ++i) {
            bytes memory refusal = abi.encodeWithSelector(IConsent.NotSource.selector, others[i]);
            _deliverRefused(others[i], bob, UNTIL, "e", refusal);
        }
        _suspend(alice);
        _deliverRefused(alice, bob, UNTIL, "e", abi.encodeWithSelector(IConsent.NotSource.selector, alice));
    }

    function test_RevertWhen_theEnvelopeIsEmptyOrTooLongOrOfNoTime() public {
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        bytes4 length = IConsent.EnvelopeLength.selector;
        _deliverRefused(alice, bob, UNTIL, "", abi.encodeWithSelector(length, 0));
        _deliverRefused(alice, bob, UNTIL, new bytes(16_385), abi.encodeWithSelector(length, 16_385));
        bytes4 end = IConsent.BadEnvelopeEnd.selector;
        _deliverRefused(alice, bob, NOW, "e", abi.encodeWithSelector(end, NOW));
        uint64 tooLong = NOW + 30 days + 1;
        _deliverRefused(alice, bob, tooLong, "e", abi.encodeWithSelector(end, tooLong));
        vm.prank(alice);
        consent.deliverKeys(ID, bob, 0, tooLong - 1, new bytes(16_384));
    }

    function testFuzz_questionAndAnswerAreSaidAsGiven(bytes calldata key, bytes calldata envelope, uint64 until) public {
        vm.assume(key.length > 0 && key.length <= 1024 && envelope.length > 0 && envelope.length <= 16_384);
        until = NOW + 1 + until % 30 days;
        _allow(OWNER_KEY, _allowance(ID, bob, 1));
        vm.expectEmit(true, true, false, true, address(consent));
        emit IConsent.KeysAsked(ID, bob, key);
        vm.prank(bob);
        consent.askKeys(ID, key);
        vm.expectEmit(true, true, false, true, address(consent));
        emit IConsent.KeysDelivered(ID, bob, keccak256(key), until, envelope);
        vm.prank(alice);
        consent.deliverKeys(ID, bob, keccak256(key), until, envelope);
    }

    /// An operator speaks for its source; an emergency and a grant for a series or a purpose are grants too.
    function test_operatorsEmergenciesAndNarrowGrants() public {
        address nurse = _addOperator(bob, 300);
        vm.prank(nurse);
        consent.breakGlass(_emergency(ID, NOW + 60), "");
        vm.expectEmit(true, true, false, true, address(consent));
        emit IConsent.KeysAsked(ID, bob, ONE_TIME_KEY);
        vm.prank(nurse);
        consent.askKeys(ID, ONE_TIME_KEY);
        vm.warp(NOW + 61);
        _neither(bob);
        IConsent.Allowance memory a = _allowance(ID, mallory, 1);
        (a.series, a.purpose, a.mode, a.deadline) = ("series", 3, IConsent.Mode.Preview, NOW + 61);
        _allow(OWNER_KEY, a);
        vm.prank(mallory);
        consent.askKeys(ID, ONE_TIME_KEY);
        address clerk = _addOperator(alice, 301);
        vm.prank(clerk);
        consent.deliverKeys(ID, mallory, keccak256(ONE_TIME_KEY), NOW + 100, "e");
    }
}
