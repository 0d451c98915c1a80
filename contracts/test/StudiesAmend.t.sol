// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";

contract StudiesAmendTest is Base {
    bytes32 internal constant ID = keccak256("study");

    function setUp() public override {
        super.setUp();
        _defineStudy(alice, ID);
    }

    function test_RevertWhen_unknown() public {
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyUnknown.selector, bytes32("x")));
        studies.amend("x", 1, "m", "r");
    }

    function test_RevertWhen_notTheStudysSource() public {
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IStudies.NotStudySource.selector, ID, bob));
        studies.amend(ID, 1, "m", "r");
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(IStudies.NotSource.selector, mallory));
        studies.amend(ID, 1, "m", "r");
    }

    function testFuzz_RevertWhen_theVersionDoesNotRise(uint32 current, uint32 given) public {
        vm.assume(current != 0 && given <= current);
        vm.prank(alice);
        studies.amend(ID, current, "m", "r");
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.VersionNotRising.selector, current, given));
        studies.amend(ID, given, "n", "s");
    }

    function test_RevertWhen_tombstoned() public {
        studies.tombstone(ID, 1, NOW, _signTombstone(OWNER_KEY, ID, 1, NOW));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyDead.selector, ID));
        studies.amend(ID, 1, "m", "r");
    }

    function testFuzz_risingVersionsReplaceTheManifest(uint32 first, uint32 second, bytes32 image, bytes32 root) public {
        vm.assume(first != 0 && second > first);
        vm.prank(alice);
        studies.amend(ID, first, "m", "r");
        vm.prank(alice);
        studies.amend(ID, second, image, root);
        (,,, uint32 version,, bytes32 manifestImage, bytes32 manifestRoot) = studies.getStudy(ID);
        assertEq(version, second);
        assertEq(manifestImage, image);
        assertEq(manifestRoot, root);
    }
}
