// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";

/// @dev nameGuardians, proposeRecovery, vetoRecovery, completeRecovery.
contract StudiesRecoveryTest is Base {
    bytes32 internal constant ID = keccak256("study");
    uint256 internal constant NEXT_KEY = 201;
    address internal immutable next = vm.addr(NEXT_KEY);
    uint32 internal constant DELAY = 2 days;
    uint64 internal constant LATER = NOW + 1000 days;

    /// @dev Keys of guardians in ascending order of their addresses.
    uint256[] internal keys;
    IStudies.GuardianSet internal set;

    function setUp() public override {
        super.setUp();
        _defineStudy(alice, ID);
        for (uint256 key = 400; key < 409; ++key) {
            keys.push(key);
            for (uint256 i = keys.length - 1; i > 0 && vm.addr(keys[i]) < vm.addr(keys[i - 1]); --i) {
                (keys[i], keys[i - 1]) = (keys[i - 1], keys[i]);
            }
        }
        for (uint256 i = 0; i < 3; ++i) {
            set.guardians.push(vm.addr(keys[i]));
        }
        set.threshold = 2;
        set.delayS = DELAY;
        set.salt = "salt";
    }

    function _name(uint32 seq) internal {
        bytes32 commitment = studies.guardianCommitment(ID, set);
        studies.nameGuardians(ID, commitment, seq, LATER, _signGuardians(OWNER_KEY, ID, commitment, seq, LATER));
    }

    /// @dev Signatures of the guardians whose bit is set in `who`.
    function _signatures(uint256 who, address newOwner, uint32 seq) internal view returns (bytes[] memory signatures) {
        signatures = new bytes[](set.guardians.length);
        bytes32 digest = _digest(_recoverHash(ID, newOwner, seq, LATER));
        for (uint256 i = 0; i < signatures.length; ++i) {
            if (who >> i & 1 == 1) signatures[i] = _sign(keys[i], digest);
        }
    }

    function _propose(uint256 who, uint32 seq) internal {
        studies.proposeRecovery(ID, next, false, LATER, set, _signatures(who, next, seq));
    }

    function _expect(bytes memory refusal) internal {
        vm.expectRevert(refusal);
    }

    function test_RevertWhen_anotherNamesTheGuardians() public {
        bytes32 commitment = studies.guardianCommitment(ID, set);
        bytes memory signature = _signGuardians(NEXT_KEY, ID, commitment, 1, LATER);
        _expect(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.nameGuardians(ID, commitment, 1, LATER, signature);
    }

    function test_RevertWhen_namingIsReplayed() public {
        bytes32 commitment = studies.guardianCommitment(ID, set);
        bytes memory signature = _signGuardians(OWNER_KEY, ID, commitment, 1, LATER);
        studies.nameGuardians(ID, commitment, 1, LATER, signature);
        studies.nameGuardians(ID, 0, 2, LATER, _signGuardians(OWNER_KEY, ID, 0, 2, LATER));
        _expect(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 2, 1));
        studies.nameGuardians(ID, commitment, 1, LATER, signature);
        bytes[] memory signatures = _signatures(7, next, 3);
        _expect(abi.encodeWithSelector(IStudies.NotTheGuardians.selector, ID));
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
    }

    function test_RevertWhen_nobodyWasNamed() public {
        bytes[] memory signatures = _signatures(7, next, 1);
        _expect(abi.encodeWithSelector(IStudies.NotTheGuardians.selector, ID));
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
    }

    function test_RevertWhen_anythingInTheSetIsNotTheNamed() public {
        _name(1);
        bytes memory refusal = abi.encodeWithSelector(IStudies.NotTheGuardians.selector, ID);
        bytes[] memory signatures = _signatures(7, next, 2);
        IStudies.GuardianSet memory other = set;
        other.threshold = 1;
        _expect(refusal);
        studies.proposeRecovery(ID, next, false, LATER, other, signatures);
        other.threshold = 2;
        other.delayS = 1 days;
        _expect(refusal);
        studies.proposeRecovery(ID, next, false, LATER, other, signatures);
        other.delayS = DELAY;
        other.salt = "pepper";
        _expect(refusal);
        studies.proposeRecovery(ID, next, false, LATER, other, signatures);
        other.salt = "salt";
        other.guardians[0] = mallory;
        _expect(refusal);
        studies.proposeRecovery(ID, next, false, LATER, other, signatures);
    }

    /// The set is only checked when it is used; nothing unsound ever works.
    function test_RevertWhen_theNamedSetIsUnsound() public {
        bytes memory refusal = abi.encodeWithSelector(IStudies.UnsoundGuardians.selector, ID);
        (address first, address second) = (set.guardians[0], set.guardians[1]);
        // Twice the same guardian would be two of two.
        set.guardians[1] = first;
        _tryUnsound(1, refusal);
        (set.guardians[0], set.guardians[1]) = (second, first);
        _tryUnsound(2, refusal);
        (set.guardians[0], set.guardians[1]) = (address(0), first);
        _tryUnsound(3, refusal);
        (set.guardians[0], set.guardians[1]) = (first, second);
        set.threshold = 0;
        _tryUnsound(4, refusal);
        set.threshold = 4;
        _tryUnsound(5, refusal);
        set.threshold = 2;
        set.delayS = 1 days - 1;
        _tryUnsound(6, refusal);
        set.delayS = 90 days + 1;
        _tryUnsound(7, refusal);
        set.delayS = DELAY;
        for (uint256 i = 3; i < 9; ++i) {
            set.guardians.push(vm.addr(keys[i]));
        }
        _tryUnsound(8, refusal);
    }

    function _tryUnsound(uint32 seq, bytes memory refusal) internal {
        _name(seq);
        bytes[] memory signatures = _signatures(7, next, seq + 1);
        _expect(refusal);
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
    }

    function test_RevertWhen_tooFewSigned() public {
        _name(1);
        bytes[] memory signatures = _signatures(2, next, 2);
        _expect(abi.encodeWithSelector(IStudies.TooFewGuardians.selector, 1, 2));
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
        _expect(abi.encodeWithSelector(IStudies.TooFewGuardians.selector, 0, 2));
        studies.proposeRecovery(ID, next, false, LATER, set, new bytes[](2));
    }

    function test_RevertWhen_aStrangerSignedForAGuardian() public {
        _name(1);
        bytes[] memory signatures = _signatures(7, next, 2);
        signatures[1] = _sign(103, _digest(_recoverHash(ID, next, 2, LATER)));
        _expect(abi.encodeWithSelector(ISigned.BadSignature.selector, set.guardians[1]));
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
    }

    function test_RevertWhen_guardiansSignedForAnotherOwnerOrDeadlineOrNumber() public {
        _name(1);
        bytes[] memory signatures = _signatures(7, next, 2);
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, set.guardians[0]);
        _expect(refusal);
        studies.proposeRecovery(ID, mallory, false, LATER, set, signatures);
        _expect(refusal);
        studies.proposeRecovery(ID, next, true, LATER, set, signatures);
        _expect(refusal);
        studies.proposeRecovery(ID, next, false, LATER + 1, set, signatures);
        signatures = _signatures(7, next, 3);
        _expect(refusal);
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
    }

    function test_RevertWhen_theProposalIsLateOrZero() public {
        _name(1);
        bytes[] memory signatures = _signatures(7, next, 2);
        _expect(abi.encodeWithSelector(IStudies.ZeroValue.selector));
        studies.proposeRecovery(ID, address(0), false, LATER, set, signatures);
        vm.warp(LATER + 1);
        _expect(abi.encodeWithSelector(ISigned.DeadlinePassed.selector, LATER));
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
    }

    function test_theDelayIsKeptToTheSecond() public {
        _name(1);
        _propose(5, 2);
        assertEq(studies.ownerOf(ID), owner);
        vm.warp(NOW + DELAY - 1);
        _expect(abi.encodeWithSelector(IStudies.RecoveryTooEarly.selector, ID, NOW + DELAY));
        studies.completeRecovery(ID);
        vm.warp(NOW + DELAY);
        vm.prank(mallory);
        studies.completeRecovery(ID);
        assertEq(studies.ownerOf(ID), next);
        _expect(abi.encodeWithSelector(IStudies.NoRecovery.selector, ID));
        studies.completeRecovery(ID);
        // The patient stays, and so do the patient's guardians.
        assertEq(studies.guardiansOf(ID), studies.guardianCommitment(ID, set));
    }

    function test_theOwnersVetoEndsIt() public {
        _name(1);
        _propose(3, 2);
        bytes memory stranger = _signVeto(NEXT_KEY, ID, 3, LATER);
        _expect(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.vetoRecovery(ID, 3, LATER, stranger);
        studies.vetoRecovery(ID, 3, LATER, _signVeto(OWNER_KEY, ID, 3, LATER));
        vm.warp(NOW + DELAY);
        _expect(abi.encodeWithSelector(IStudies.NoRecovery.selector, ID));
        studies.completeRecovery(ID);
        // What the guardians signed is used up.
        bytes[] memory signatures = _signatures(3, next, 2);
        _expect(abi.encodeWithSelector(ISigned.BadSignature.selector, set.guardians[0]));
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
        bytes memory again = _signVeto(OWNER_KEY, ID, 4, LATER);
        _expect(abi.encodeWithSelector(IStudies.NoRecovery.selector, ID));
        studies.vetoRecovery(ID, 4, LATER, again);
    }

    /// A veto with a number well above the study's cannot be outrun by guardians who propose again and again.
    function test_guardiansCannotUseUpTheOwnersNumbers() public {
        _name(1);
        _propose(3, 2);
        bytes memory veto = _signVeto(OWNER_KEY, ID, 50, LATER);
        _propose(3, 3);
        _propose(3, 4);
        studies.vetoRecovery(ID, 50, LATER, veto);
        (address newOwner,,) = studies.recoveryOf(ID);
        assertEq(newOwner, address(0));
    }

    function test_aNewProposalBeginsTheDelayAnew() public {
        _name(1);
        _propose(3, 2);
        vm.warp(NOW + DELAY);
        studies.proposeRecovery(ID, mallory, false, LATER, set, _signatures(6, mallory, 3));
        _expect(abi.encodeWithSelector(IStudies.RecoveryTooEarly.selector, ID, NOW + 2 * DELAY));
        studies.completeRecovery(ID);
    }

    function test_recoveryDoesNotSurviveATransfer() public {
        _name(1);
        _propose(3, 2);
        studies.transfer(ID, mallory, false, 3, LATER, _signTransfer(OWNER_KEY, ID, mallory, 3, LATER));
        vm.warp(NOW + DELAY);
        _expect(abi.encodeWithSelector(IStudies.NoRecovery.selector, ID));
        studies.completeRecovery(ID);
        // Nor do the guardians: they were the former owner's.
        assertEq(studies.guardiansOf(ID), 0);
        bytes[] memory signatures = _signatures(7, next, 4);
        _expect(abi.encodeWithSelector(IStudies.NotTheGuardians.selector, ID));
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
    }

    function test_recoveryDoesNotSurviveAGuardianChange() public {
        _name(1);
        _propose(3, 2);
        _name(3);
        vm.warp(NOW + DELAY);
        _expect(abi.encodeWithSelector(IStudies.NoRecovery.selector, ID));
        studies.completeRecovery(ID);
    }

    function test_recoveryDoesNotSurviveATombstone() public {
        _name(1);
        _propose(3, 2);
        studies.tombstone(ID, 3, LATER, _signTombstone(OWNER_KEY, ID, 3, LATER));
        vm.warp(NOW + DELAY);
        _expect(abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
        studies.completeRecovery(ID);
        bytes[] memory signatures = _signatures(7, next, 4);
        _expect(abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
    }

    /// A set named for one study is none for another: the commitment holds the id, the signatures hold it too.
    function test_guardiansOfOneStudyAreNotThoseOfAnother() public {
        _name(1);
        _defineStudy(alice, "other");
        bytes32 commitment = studies.guardiansOf(ID);
        studies.nameGuardians("other", commitment, 1, LATER, _signGuardians(OWNER_KEY, "other", commitment, 1, LATER));
        bytes[] memory signatures = _signatures(7, next, 2);
        _expect(abi.encodeWithSelector(IStudies.NotTheGuardians.selector, bytes32("other")));
        studies.proposeRecovery("other", next, false, LATER, set, signatures);
    }

    /// Any two, and nobody less, whoever sends.
    function testFuzz_enoughGuardiansRecover(uint8 who, address sender) public {
        _name(1);
        uint256 chosen = who % 8;
        uint256 count = (chosen & 1) + (chosen >> 1 & 1) + (chosen >> 2 & 1);
        bytes[] memory signatures = _signatures(chosen, next, 2);
        if (count < 2) _expect(abi.encodeWithSelector(IStudies.TooFewGuardians.selector, count, 2));
        vm.prank(sender);
        studies.proposeRecovery(ID, next, false, LATER, set, signatures);
        (address newOwner,, uint64 readyAt) = studies.recoveryOf(ID);
        assertEq(newOwner, count < 2 ? address(0) : next);
        assertEq(readyAt, count < 2 ? 0 : NOW + DELAY);
    }
}
