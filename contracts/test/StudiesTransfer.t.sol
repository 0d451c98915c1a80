// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";

/// @dev transfer and tombstone: what owners sign and anybody sends.
contract StudiesTransferTest is Base {
    bytes32 internal constant ID = keccak256("study");
    uint256 internal constant NEXT_KEY = 201;
    address internal immutable next = vm.addr(NEXT_KEY);

    function setUp() public override {
        super.setUp();
        _defineStudy(alice, ID);
    }

    function test_RevertWhen_unknownOrZero() public {
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyUnknown.selector, bytes32("x")));
        studies.transfer("x", next, false, 1, NOW, "");
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyUnknown.selector, bytes32("x")));
        studies.tombstone("x", 1, NOW, "");
        vm.expectRevert(IStudies.ZeroValue.selector);
        studies.transfer(ID, address(0), false, 1, NOW, "");
    }

    function testFuzz_RevertWhen_anotherSigned(uint256 key) public {
        key = 1000 + key % (SECP256K1_ORDER - 1000);
        bytes memory signature = _signTransfer(key, ID, next, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.transfer(ID, next, false, 1, NOW, signature);
        signature = _signTombstone(key, ID, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.tombstone(ID, 1, NOW, signature);
    }

    function test_RevertWhen_anyFieldIsNotTheSignedOne() public {
        bytes memory signature = _signTransfer(OWNER_KEY, ID, next, 5, NOW + 9);
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, owner);
        vm.expectRevert(refusal);
        studies.transfer(ID, mallory, false, 5, NOW + 9, signature);
        vm.expectRevert(refusal);
        studies.transfer(ID, next, false, 6, NOW + 9, signature);
        vm.expectRevert(refusal);
        studies.transfer(ID, next, false, 5, NOW + 10, signature);
        _defineStudy(alice, "other");
        vm.expectRevert(refusal);
        studies.transfer("other", next, false, 5, NOW + 9, signature);
        vm.expectRevert(refusal);
        studies.tombstone(ID, 5, NOW + 9, signature);
    }

    function test_RevertWhen_late() public {
        bytes memory signature = _signTransfer(OWNER_KEY, ID, next, 1, NOW);
        vm.warp(NOW + 1);
        vm.expectRevert(abi.encodeWithSelector(ISigned.DeadlinePassed.selector, NOW));
        studies.transfer(ID, next, false, 1, NOW, signature);
    }

    /// A fault of published systems: approvals that can be played twice.
    function test_RevertWhen_replayed() public {
        bytes memory signature = _signTransfer(OWNER_KEY, ID, next, 1, NOW);
        studies.transfer(ID, next, false, 1, NOW, signature);
        bytes memory back = _signTransfer(NEXT_KEY, ID, owner, 2, NOW);
        studies.transfer(ID, owner, false, 2, NOW, back);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 2, 1));
        studies.transfer(ID, next, false, 1, NOW, signature);
    }

    /// The very number that was used is used up, also for another message of the same owner.
    function testFuzz_RevertWhen_theSeqDoesNotRise(uint32 current, uint32 given) public {
        vm.assume(current != 0 && given <= current);
        studies.transfer(ID, owner, false, current, NOW, _signTransfer(OWNER_KEY, ID, owner, current, NOW));
        bytes memory refusal = abi.encodeWithSelector(ISigned.SeqNotRising.selector, current, given);
        bytes memory signature = _signTransfer(OWNER_KEY, ID, next, given, NOW);
        vm.expectRevert(refusal);
        studies.transfer(ID, next, false, given, NOW, signature);
        signature = _signTombstone(OWNER_KEY, ID, given, NOW);
        vm.expectRevert(refusal);
        studies.tombstone(ID, given, NOW, signature);
        signature = _signTransfer(OWNER_KEY, ID, next, current, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, current, current));
        studies.transfer(ID, next, false, current, NOW, signature);
    }

    /// A fault of published systems: messages replayed out of order. A relayer that holds 5 and 6 cannot play 6 and then 5.
    function test_RevertWhen_playedOutOfOrder() public {
        bytes memory fifth = _signTransfer(OWNER_KEY, ID, mallory, 5, NOW);
        bytes memory sixth = _signTransfer(OWNER_KEY, ID, next, 6, NOW);
        studies.transfer(ID, next, false, 6, NOW, sixth);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 6, 5));
        studies.transfer(ID, mallory, false, 5, NOW, fifth);
        assertEq(studies.ownerOf(ID), next);
    }

    function test_RevertWhen_tombstoned() public {
        studies.tombstone(ID, 1, NOW, _signTombstone(OWNER_KEY, ID, 1, NOW));
        bytes memory signature = _signTransfer(OWNER_KEY, ID, next, 2, NOW);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
        studies.transfer(ID, next, false, 2, NOW, signature);
        signature = _signTombstone(OWNER_KEY, ID, 2, NOW);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
        studies.tombstone(ID, 2, NOW, signature);
    }

    function testFuzz_anybodySendsTheOwnersWord(address sender, uint32 seq) public {
        vm.assume(seq != 0 && seq < type(uint32).max);
        bytes memory signature = _signTransfer(OWNER_KEY, ID, next, seq, NOW);
        vm.prank(sender);
        studies.transfer(ID, next, false, seq, NOW, signature);
        assertEq(studies.ownerOf(ID), next);
        signature = _signTombstone(NEXT_KEY, ID, seq + 1, NOW);
        vm.prank(sender);
        studies.tombstone(ID, seq + 1, NOW, signature);
        (address owner_, address source,,, bool tombstoned,,) = studies.getStudy(ID);
        assertEq(owner_, next);
        assertEq(source, alice);
        assertTrue(tombstoned);
        assertEq(studies.stakeOf(alice), 1);
    }
}
