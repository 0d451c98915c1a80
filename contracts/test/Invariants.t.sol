// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IPieces} from "../solidity/interfaces/IPieces.sol";
import {PiecesCode} from "../solidity/PiecesCode.sol";

/// @dev Calls the contracts in random order as sources, as a suspended source and as a stranger, and remembers what succeeded.
contract Handler is Base {
    PiecesCode internal pieces;
    uint256[3] internal callers = [101, 102, 103];

    mapping(address => uint256) public defines;
    uint256 public allDefines;
    bytes32[] public studyIds;
    uint64 public lastSeq;

    struct Stored {
        address source;
        bytes32 image;
        uint32 index;
        bytes data;
    }

    Stored[] internal _stored;
    mapping(bytes32 => bytes32) internal _sealedRoot;
    mapping(bytes32 => uint32) internal _sealedPieces;
    bytes32[] internal _sealedKeys;
    mapping(bytes32 => address) internal _sealedSource;
    mapping(bytes32 => bytes32) internal _sealedImage;
    bool public strangerSucceeded;
    bool public sealedChanged;

    constructor() {
        Base.setUp();
        pieces = new PiecesCode(address(sources));
    }

    function setUp() public override {}

    function defineStudy(uint256 who, bytes32 id, uint256 signer) external {
        address source = vm.addr(callers[who % 3]);
        id = bytes32(uint256(1 + uint256(id) % 20));
        uint256 key = signer % 4 == 0 ? OWNER_KEY + 1 : OWNER_KEY;
        bytes memory signature = _signDefine(key, id, owner, source, NOW);
        vm.prank(source);
        try studies.defineStudy(id, owner, false, 0, NOW, signature) {
            if (source == mallory || key != OWNER_KEY) strangerSucceeded = true;
            ++defines[source];
            ++allDefines;
            studyIds.push(id);
        } catch {}
    }

    function store(uint256 who, uint256 image, uint32 index, uint8 size, uint8 fill) external {
        address source = vm.addr(callers[who % 3]);
        bytes32 id = bytes32(1 + image % 2);
        index %= 3;
        bytes memory data = new bytes(size % 4);
        for (uint256 i = 0; i < data.length; ++i) {
            data[i] = bytes1(fill % 2);
        }
        bool was = pieces.getPieceExists(source, id, index);
        bool ended = pieces.getEnd(source, id);
        vm.prank(source);
        try pieces.storePiece("study", id, index, data) {
            if (source == mallory) strangerSucceeded = true;
            if (!was && ended) sealedChanged = true;
            if (!was) _stored.push(Stored(source, id, index, data));
        } catch {}
    }

    function seal(uint256 who, uint256 image) external {
        address source = vm.addr(callers[who % 3]);
        bytes32 id = bytes32(1 + image % 2);
        uint32 count = pieces.getPiecesCount(source, id);
        bytes32[] memory hashes = new bytes32[](count);
        for (uint32 i = 0; i < count; ++i) {
            hashes[i] = keccak256(abi.encodePacked(pieces.pieceHashOf(source, id, i)));
        }
        uint256 n = count;
        while (n > 1) {
            for (uint256 i = 0; i < n / 2; ++i) {
                hashes[i] = keccak256(abi.encodePacked(hashes[2 * i], hashes[2 * i + 1]));
            }
            if (n % 2 == 1) hashes[n / 2] = hashes[n - 1];
            n = (n + 1) / 2;
        }
        bytes32 root = count == 0 ? bytes32(0) : hashes[0];
        vm.prank(source);
        try pieces.seal(id, count, root) {
            if (source == mallory) strangerSucceeded = true;
            bytes32 key = keccak256(abi.encode(source, id));
            if (_sealedPieces[key] == 0) {
                _sealedKeys.push(key);
                _sealedSource[key] = source;
                _sealedImage[key] = id;
                _sealedRoot[key] = root;
                _sealedPieces[key] = count;
            }
        } catch {}
    }

    function toggleSuspension(uint256 who) external {
        address source = vm.addr(callers[who % 2]);
        vm.prank(admin);
        try sources.suspend(source) {}
        catch {
            vm.prank(admin);
            sources.reinstate(source);
        }
    }

    function checkStake() external view {
        assertEq(studies.stakeTotal(), allDefines);
        assertEq(studies.stakeOf(alice), defines[alice]);
        assertEq(studies.stakeOf(bob), defines[bob]);
        assertEq(studies.stakeOf(mallory), 0);
    }

    function checkStored() external view {
        for (uint256 i = 0; i < _stored.length; ++i) {
            Stored storage piece = _stored[i];
            assertEq(pieces.pieceHashOf(piece.source, piece.image, piece.index), keccak256(piece.data));
            assertEq(pieces.loadPiece(piece.source, piece.image, piece.index), piece.data);
        }
    }

    function checkSealed() external view {
        for (uint256 i = 0; i < _sealedKeys.length; ++i) {
            bytes32 key = _sealedKeys[i];
            (, uint32 stored,,, uint32 count, bytes32 root) = pieces.getImage(_sealedSource[key], _sealedImage[key]);
            assertEq(stored, count);
            assertEq(count, _sealedPieces[key]);
            assertEq(root, _sealedRoot[key]);
        }
    }

    function checkImages() external view {
        uint256 images;
        for (uint256 i = 1; i <= 2; ++i) {
            if (pieces.getImageExists(alice, bytes32(i))) ++images;
        }
        assertEq(pieces.getImageCount(alice, "study"), images);
    }
}

contract InvariantsTest {
    Handler internal handler;

    function setUp() public {
        handler = new Handler();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        targets = new FuzzSelector[](1);
        targets[0].addr = address(handler);
        targets[0].selectors = new bytes4[](6);
        targets[0].selectors[0] = Handler.defineStudy.selector;
        targets[0].selectors[1] = Handler.store.selector;
        targets[0].selectors[2] = Handler.seal.selector;
        targets[0].selectors[3] = Handler.toggleSuspension.selector;
        // Twice: most of what can go wrong is about pieces.
        targets[0].selectors[4] = Handler.store.selector;
        targets[0].selectors[5] = Handler.seal.selector;
    }

    function invariant_stakeEqualsDefines() external view {
        handler.checkStake();
    }

    function invariant_onlySourcesWrite() external view {
        require(!handler.strangerSucceeded(), "a stranger wrote");
    }

    function invariant_recordedHashesAndBytesNeverChange() external view {
        handler.checkStored();
    }

    function invariant_sealedImagesAreImmutable() external view {
        require(!handler.sealedChanged(), "a sealed image grew");
        handler.checkSealed();
    }

    function invariant_everyImageIsListedOnce() external view {
        handler.checkImages();
    }
}
