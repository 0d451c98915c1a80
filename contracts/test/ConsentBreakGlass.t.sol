// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IConsent} from "../solidity/interfaces/IConsent.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";

/// @dev breakGlass and setEmergencyApproval.
contract ConsentBreakGlassTest is Base {
    bytes32 internal constant ID = keccak256("study");
    uint64 internal constant UNTIL = NOW + 3600;
    uint256 internal constant NURSE_KEY = 300;
    uint256 internal constant DOCTOR_KEY = 301;
    address internal nurse;
    address internal doctor;

    function setUp() public override {
        super.setUp();
        _defineStudy(alice, ID);
        nurse = _addOperator(bob, NURSE_KEY);
        doctor = _addOperator(bob, DOCTOR_KEY);
    }

    function _refused(address who, IConsent.Emergency memory e, bytes memory signature, bytes memory refusal) internal {
        vm.prank(who);
        vm.expectRevert(refusal);
        consent.breakGlass(e, signature);
    }

    function test_RevertWhen_theSenderIsNoSource() public {
        IConsent.Emergency memory e = _emergency(ID, UNTIL);
        _refused(mallory, e, "", abi.encodeWithSelector(IConsent.NotSource.selector, mallory));
        _refused(owner, e, "", abi.encodeWithSelector(IConsent.NotSource.selector, owner));
        _suspend(bob);
        _refused(nurse, e, "", abi.encodeWithSelector(IConsent.NotSource.selector, nurse));
    }

    function test_RevertWhen_withoutReason() public {
        IConsent.Emergency memory e = _emergency(ID, UNTIL);
        e.reason = 0;
        _refused(nurse, e, "", abi.encodeWithSelector(IConsent.NoReason.selector));
    }

    function test_RevertWhen_itIsOverOrTooLong() public {
        _refused(nurse, _emergency(ID, NOW), "", abi.encodeWithSelector(IConsent.BadEmergency.selector, NOW));
        uint64 tooLong = NOW + 1 days + 1;
        _refused(nurse, _emergency(ID, tooLong), "", abi.encodeWithSelector(IConsent.BadEmergency.selector, tooLong));
        vm.prank(nurse);
        consent.breakGlass(_emergency(ID, tooLong - 1), "");
    }

    /// The same words again would only hide the first event among many.
    function test_RevertWhen_itAddsNothing() public {
        vm.prank(nurse);
        consent.breakGlass(_emergency(ID, UNTIL), "");
        _refused(nurse, _emergency(ID, UNTIL), "", abi.encodeWithSelector(IConsent.BadEmergency.selector, UNTIL));
    }

    function test_aTombstoneIsNeverOverridden() public {
        vm.prank(nurse);
        consent.breakGlass(_emergency(ID, UNTIL), "");
        studies.tombstone(ID, 1, NOW, _signTombstone(OWNER_KEY, ID, 1, NOW));
        assertFalse(_granted(ID, bob));
        _refused(nurse, _emergency(ID, UNTIL + 1), "", abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
    }

    function test_itIsToldAndEndsByItself() public {
        vm.expectEmit(true, true, true, true, address(consent));
        emit IConsent.GlassBroken(ID, bob, owner, nurse, address(0), 1, 0, UNTIL);
        vm.prank(nurse);
        consent.breakGlass(_emergency(ID, UNTIL), "");
        (IConsent.Mode mode, bool emergency, uint64 until) = consent.isAllowed(ID, "any series", bob, 7);
        assertTrue(mode == IConsent.Mode.Full && emergency && until == UNTIL);
        // It is no grant: the state towards the source is what it was, and nobody else gets anything.
        assertEq(_state(ID, bob), IConsent.Trace.NotAuthorised);
        assertFalse(_granted(ID, nurse));
        assertFalse(_granted(ID, mallory));
        vm.warp(UNTIL);
        assertTrue(_granted(ID, bob));
        vm.warp(UNTIL + 1);
        assertFalse(_granted(ID, bob));
    }

    /// What the owner granted is reported as granted; the emergency only adds what the grant leaves out.
    function test_aGrantIsReportedAsAGrant() public {
        vm.prank(nurse);
        consent.breakGlass(_emergency(ID, UNTIL), "");
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        a.mode = IConsent.Mode.Preview;
        _allow(OWNER_KEY, a);
        (IConsent.Mode mode, bool emergency, uint64 until) = consent.isAllowed(ID, 0, bob, 0);
        assertTrue(mode == IConsent.Mode.Full && emergency && until == UNTIL);
        _allow(OWNER_KEY, _allowance(ID, bob, 2));
        (mode, emergency, until) = consent.isAllowed(ID, 0, bob, 0);
        assertTrue(mode == IConsent.Mode.Full && !emergency && until == NOW + 1000);
    }

    function _demandApproval() internal {
        vm.prank(bob);
        consent.setEmergencyApproval(true);
    }

    function test_RevertWhen_anOperatorOrAStrangerSwitchesApprovalOff() public {
        _demandApproval();
        vm.prank(nurse);
        vm.expectRevert(abi.encodeWithSelector(IConsent.NotSource.selector, nurse));
        consent.setEmergencyApproval(false);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(IConsent.NotSource.selector, mallory));
        consent.setEmergencyApproval(false);
        assertTrue(consent.emergencyApproval(bob));
        assertFalse(consent.emergencyApproval(alice));
    }

    function test_RevertWhen_theApproverIsMissingOrNotAnotherOperator() public {
        _demandApproval();
        IConsent.Emergency memory e = _emergency(ID, UNTIL);
        address[5] memory wrong = [address(0), nurse, alice, mallory, owner];
        for (uint256 i = 0; i < wrong.length; ++i) {
            e.approver = wrong[i];
            bytes memory signature = _signEmergency(NURSE_KEY, e, bob, nurse);
            _refused(nurse, e, signature, abi.encodeWithSelector(IConsent.NotApprover.selector, bob, wrong[i]));
        }
        e.approver = doctor;
        vm.prank(bob);
        sources.revokeOperator(doctor);
        bytes memory late = _signEmergency(DOCTOR_KEY, e, bob, nurse);
        _refused(nurse, e, late, abi.encodeWithSelector(IConsent.NotApprover.selector, bob, doctor));
    }

    function test_RevertWhen_theApproverDidNotSignThis() public {
        _demandApproval();
        IConsent.Emergency memory e = _emergency(ID, UNTIL);
        e.approver = doctor;
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, doctor);
        _refused(nurse, e, "", refusal);
        _refused(nurse, e, _signEmergency(NURSE_KEY, e, bob, nurse), refusal);
        // For another colleague.
        _refused(nurse, e, _signEmergency(DOCTOR_KEY, e, bob, bob), refusal);
        bytes memory signature = _signEmergency(DOCTOR_KEY, e, bob, nurse);
        e.until += 1;
        _refused(nurse, e, signature, refusal);
        e.until -= 1;
        e.reason = 2;
        _refused(nurse, e, signature, refusal);
        e.reason = 1;
        vm.warp(NOW + 1);
        _refused(nurse, e, signature, abi.encodeWithSelector(ISigned.DeadlinePassed.selector, NOW));
    }

    function test_twoOperatorsLetTheirSourceInAndBothAreNamed() public {
        _demandApproval();
        IConsent.Emergency memory e = _emergency(ID, UNTIL);
        e.approver = doctor;
        vm.expectEmit(true, true, true, true, address(consent));
        emit IConsent.GlassBroken(ID, bob, owner, nurse, doctor, 1, 0, UNTIL);
        bytes memory signature = _signEmergency(DOCTOR_KEY, e, bob, nurse);
        vm.prank(nurse);
        consent.breakGlass(e, signature);
        assertTrue(_granted(ID, bob));
        // The approval is used up with the time it was for.
        _refused(nurse, e, signature, abi.encodeWithSelector(IConsent.BadEmergency.selector, UNTIL));
    }

    /// Nobody can be named as approver who did not approve, whether one is demanded or not.
    function test_RevertWhen_anApproverIsNamedInVain() public {
        IConsent.Emergency memory e = _emergency(ID, UNTIL);
        e.approver = doctor;
        _refused(nurse, e, "", abi.encodeWithSelector(ISigned.BadSignature.selector, doctor));
    }
}
