// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IPieces, IPiecesReadable} from "../solidity/interfaces/IPieces.sol";
import {PiecesCalldata} from "../solidity/PiecesCalldata.sol";
import {PiecesCode} from "../solidity/PiecesCode.sol";
import {PiecesLog} from "../solidity/PiecesLog.sol";
import {PiecesStorage} from "../solidity/PiecesStorage.sol";

/// @dev The same tests for all four modes.
abstract contract PiecesBaseTest is Base {
    IPieces internal pieces;
    bytes32 internal constant STUDY = keccak256("study");
    bytes32 internal constant IMAGE = keccak256("image");

    function _deploy() internal virtual returns (IPieces);

    function setUp() public override {
        super.setUp();
        pieces = _deploy();
    }

    function _store(address source, bytes32 image, uint32 index, bytes memory data) internal {
        vm.prank(source);
        pieces.storePiece(STUDY, image, index, data);
    }

    /// @dev The root by definition (RFC 9162 2.1.1), another algorithm than the contract's.
    function _root(bytes32[] memory hashes, uint256 from, uint256 to) internal pure returns (bytes32) {
        uint256 n = to - from;
        if (n == 1) return keccak256(abi.encodePacked(hashes[from]));
        uint256 k = 1;
        while (k * 2 < n) k *= 2;
        return keccak256(abi.encodePacked(_root(hashes, from, from + k), _root(hashes, from + k, to)));
    }

    function _fill(address source, bytes32 image, uint32 count) internal returns (bytes32) {
        bytes32[] memory hashes = new bytes32[](count);
        for (uint32 i = 0; i < count; ++i) {
            bytes memory data = abi.encodePacked(image, i);
            hashes[i] = keccak256(data);
            _store(source, image, i, data);
        }
        return _root(hashes, 0, count);
    }

    // storePiece, storePieces

    function testFuzz_RevertWhen_theSenderIsNoSource(address sender) public {
        vm.assume(sources.sourceOf(sender) == address(0));
        bytes memory refusal = abi.encodeWithSelector(IPieces.NotSource.selector, sender);
        vm.prank(sender);
        vm.expectRevert(refusal);
        pieces.storePiece(STUDY, IMAGE, 0, "data");
        vm.prank(sender);
        vm.expectRevert(refusal);
        pieces.storePieces(new IPieces.PieceInput[](0));
        vm.prank(sender);
        vm.expectRevert(refusal);
        pieces.seal(IMAGE, 1, 0);
        vm.prank(sender);
        vm.expectRevert(refusal);
        pieces.sealImages(new IPieces.SealInput[](0));
        vm.prank(sender);
        vm.expectRevert(refusal);
        pieces.fold(IMAGE);
    }

    function test_RevertWhen_zeroOrEmptyOrTooHigh() public {
        vm.prank(alice);
        vm.expectRevert(IPieces.ZeroId.selector);
        pieces.storePiece(0, IMAGE, 0, "data");
        vm.prank(alice);
        vm.expectRevert(IPieces.ZeroId.selector);
        pieces.storePiece(STUDY, 0, 0, "data");
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.EmptyPiece.selector, IMAGE, 3));
        pieces.storePiece(STUDY, IMAGE, 3, "");
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.IndexTooHigh.selector, 1 << 20));
        pieces.storePiece(STUDY, IMAGE, 1 << 20, "data");
    }

    function testFuzz_RevertWhen_otherBytes(uint32 index, bytes memory data, bytes memory other) public {
        index %= 1 << 20;
        vm.assume(data.length > 0 && keccak256(data) != keccak256(other));
        _store(alice, IMAGE, index, data);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.PieceDiffers.selector, IMAGE, index));
        pieces.storePiece(STUDY, IMAGE, index, other);
    }

    function test_RevertWhen_anotherStudy() public {
        _store(alice, IMAGE, 0, "data");
        bytes memory refusal = abi.encodeWithSelector(IPieces.StudyDiffers.selector, IMAGE, bytes32("other"));
        vm.prank(alice);
        vm.expectRevert(refusal);
        pieces.storePiece("other", IMAGE, 1, "data");
        vm.prank(alice);
        vm.expectRevert(refusal);
        pieces.storePiece("other", IMAGE, 0, "data");
    }

    function test_aBatchIsAllOrNothing() public {
        IPieces.PieceInput[] memory batch = new IPieces.PieceInput[](3);
        batch[0] = IPieces.PieceInput(STUDY, "a", 0, "one");
        batch[1] = IPieces.PieceInput("other", "b", 7, "two");
        batch[2] = IPieces.PieceInput(STUDY, "a", 0, "not one");
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.PieceDiffers.selector, bytes32("a"), 0));
        pieces.storePieces(batch);
        assertFalse(pieces.getImageExists(alice, "a"));
        batch[2].index = 1;
        vm.prank(alice);
        pieces.storePieces(batch);
        assertEq(pieces.getPiecesCount(alice, "a"), 2);
        assertTrue(pieces.getPieceExists(alice, "b", 7));
        assertEq(pieces.getImageCount(alice, STUDY), 1);
        assertEq(pieces.getImageCount(alice, "other"), 1);
    }

    function testFuzz_storedIsStoredOnce(uint32 index, bytes memory data) public {
        index %= 1 << 20;
        vm.assume(data.length > 0);
        assertFalse(pieces.getPatientExists(alice, STUDY));
        assertFalse(pieces.getImageExists(alice, IMAGE));
        _store(alice, IMAGE, index, data);
        _store(alice, IMAGE, index, data);
        assertTrue(pieces.getPatientExists(alice, STUDY));
        assertTrue(pieces.getImageExists(alice, IMAGE));
        assertTrue(pieces.getPieceExists(alice, IMAGE, index));
        assertFalse(pieces.getPieceExists(alice, IMAGE, index + 1));
        assertEq(pieces.getPiecesCount(alice, IMAGE), 1);
        assertEq(pieces.getImageCount(alice, STUDY), 1);
        assertEq(pieces.imageAt(alice, STUDY, 0), IMAGE);
        assertEq(pieces.pieceHashOf(alice, IMAGE, index), keccak256(data));
        (bytes32 study, uint32 stored, uint64 size,,,) = pieces.getImage(alice, IMAGE);
        assertEq(study, STUDY);
        assertEq(stored, 1);
        assertEq(size, data.length);
    }

    /// Nobody can occupy or spoil the image of another: ids live in the source's own name space.
    function test_sourcesDoNotMeet() public {
        _store(alice, IMAGE, 0, "of alice");
        _store(bob, IMAGE, 0, "of bob");
        assertEq(pieces.pieceHashOf(alice, IMAGE, 0), keccak256("of alice"));
        assertEq(pieces.pieceHashOf(bob, IMAGE, 0), keccak256("of bob"));
        assertEq(pieces.getImageCount(alice, STUDY), 1);
    }

    /// A new operator continues the image that the old one began.
    function test_rotationContinuesTheImage() public {
        _store(alice, IMAGE, 0, "begun");
        address operator = vm.addr(300);
        vm.prank(alice);
        sources.authorizeOperator(operator);
        vm.prank(operator);
        sources.acceptOperator(alice);
        _store(operator, IMAGE, 1, "continued");
        assertEq(pieces.getPiecesCount(alice, IMAGE), 2);
    }

    // seal, sealImages, fold

    function test_RevertWhen_sealingWithTheWrongCount() public {
        bytes32 root = _fill(alice, IMAGE, 3);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.CountDiffers.selector, IMAGE, 3, 2));
        pieces.seal(IMAGE, 2, root);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.CountDiffers.selector, bytes32("none"), 0, 0));
        pieces.seal("none", 0, root);
    }

    function test_RevertWhen_sealingWithAGap() public {
        _store(alice, IMAGE, 0, "a");
        _store(alice, IMAGE, 2, "c");
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.PieceMissing.selector, IMAGE, 1));
        pieces.seal(IMAGE, 2, 0);
    }

    function testFuzz_RevertWhen_sealingWithAnotherRoot(bytes32 root) public {
        bytes32 right = _fill(alice, IMAGE, 5);
        vm.assume(root != right);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.RootDiffers.selector, IMAGE, right));
        pieces.seal(IMAGE, 5, root);
    }

    function test_RevertWhen_foldingTooEarly() public {
        _store(alice, IMAGE, 0, "a");
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.PieceMissing.selector, IMAGE, 1));
        pieces.fold(IMAGE);
    }

    function test_aSealedImageIsFinal() public {
        bytes32 root = _fill(alice, IMAGE, 4);
        vm.prank(alice);
        pieces.seal(IMAGE, 4, root);
        assertTrue(pieces.getEnd(alice, IMAGE));
        assertFalse(pieces.getEnd(bob, IMAGE));
        bytes memory refusal = abi.encodeWithSelector(IPieces.AlreadySealed.selector, IMAGE);
        vm.prank(alice);
        vm.expectRevert(refusal);
        pieces.storePiece(STUDY, IMAGE, 4, "more");
        vm.prank(alice);
        vm.expectRevert(refusal);
        pieces.seal(IMAGE, 3, root);
        vm.prank(alice);
        vm.expectRevert(refusal);
        pieces.fold(IMAGE);
        // Repeats of what is there succeed and change nothing.
        vm.prank(alice);
        pieces.seal(IMAGE, 4, root);
        _store(alice, IMAGE, 2, abi.encodePacked(IMAGE, uint32(2)));
        (,, uint64 size,, uint32 count, bytes32 kept) = pieces.getImage(alice, IMAGE);
        assertEq(size, 4 * 36);
        assertEq(count, 4);
        assertEq(kept, root);
    }

    function testFuzz_anyNumberOfPiecesSeals(uint8 count) public {
        count = uint8(1 + count % 40);
        bytes32 root = _fill(alice, IMAGE, count);
        vm.prank(alice);
        pieces.seal(IMAGE, count, root);
        assertTrue(pieces.getEnd(alice, IMAGE));
    }

    function test_severalImagesSealAtOnce() public {
        IPieces.SealInput[] memory batch = new IPieces.SealInput[](2);
        batch[0] = IPieces.SealInput("a", 2, _fill(alice, "a", 2));
        batch[1] = IPieces.SealInput("b", 3, _fill(alice, "b", 3));
        vm.prank(alice);
        pieces.sealImages(batch);
        assertTrue(pieces.getEnd(alice, "a"));
        assertTrue(pieces.getEnd(alice, "b"));
    }
}

contract PiecesCalldataTest is PiecesBaseTest {
    function _deploy() internal override returns (IPieces) {
        return new PiecesCalldata(address(sources));
    }

    /// Large images are sealed in bounded steps: one step too few is refused, and folding does not change the root.
    function test_foldThenSeal() public {
        uint32 count = 4096 + 1024 + 3;
        bytes32 root = _fill(alice, IMAGE, count);
        vm.prank(alice);
        pieces.fold(IMAGE);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IPieces.FoldFirst.selector, IMAGE, 1024, count));
        pieces.seal(IMAGE, count, root);
        vm.prank(alice);
        pieces.fold(IMAGE);
        uint256 before = gasleft();
        vm.prank(alice);
        pieces.seal(IMAGE, count, root);
        require(before - gasleft() < 16_000_000, "sealing is not bounded");
        assertTrue(pieces.getEnd(alice, IMAGE));
    }
}

contract PiecesLogTest is PiecesBaseTest {
    function _deploy() internal override returns (IPieces) {
        return new PiecesLog(address(sources));
    }

    function testFuzz_theBytesAreInTheLog(uint32 index, bytes memory data) public {
        index %= 1 << 20;
        vm.assume(data.length > 0);
        vm.expectEmit(true, true, true, true, address(pieces));
        emit PiecesLog.PieceBytes(alice, IMAGE, index, data);
        vm.prank(alice);
        pieces.storePiece(STUDY, IMAGE, index, data);
    }
}

/// @dev The modes that a call can read.
abstract contract PiecesReadableTest is PiecesBaseTest {
    function testFuzz_RevertWhen_loadingNothing(uint32 index) public {
        vm.expectRevert(abi.encodeWithSelector(IPiecesReadable.PieceUnknown.selector, IMAGE, index));
        IPiecesReadable(address(pieces)).loadPiece(alice, IMAGE, index);
    }

    function testFuzz_loadedIsStored(uint32 index, bytes memory data) public {
        index %= 1 << 20;
        vm.assume(data.length > 0);
        _store(alice, IMAGE, index, data);
        assertEq(IPiecesReadable(address(pieces)).loadPiece(alice, IMAGE, index), data);
    }
}

contract PiecesCodeTest is PiecesReadableTest {
    function _deploy() internal override returns (IPieces) {
        return new PiecesCode(address(sources));
    }

    /// Around the sizes at which a further data contract begins.
    function test_partsJoin() public {
        uint24[9] memory sizes = [1, 24_574, 24_575, 24_576, 30_000, 49_150, 49_151, 73_725, 120_000];
        for (uint32 i = 0; i < sizes.length; ++i) {
            bytes memory data = new bytes(sizes[i]);
            for (uint256 at = 0; at < data.length; at += 997) {
                data[at] = bytes1(uint8(at >> 3) | 1);
            }
            _store(alice, IMAGE, i, data);
            assertEq(IPiecesReadable(address(pieces)).loadPiece(alice, IMAGE, i), data);
        }
    }
}

contract PiecesStorageTest is PiecesReadableTest {
    function _deploy() internal override returns (IPieces) {
        return new PiecesStorage(address(sources));
    }
}
