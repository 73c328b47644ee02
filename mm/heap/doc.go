// Package heap is the Win32 Heap API over any address space, and Global and Local memory over the Heap API.
//
// It is a library: give New a Space, which is VirtualAlloc with Read and Write, and take a Thread to make calls with. All
// that a heap knows of itself lies in the space's memory, as on Windows: block headers, lists, bitmaps, the heap's
// header. So heap pages fault, page out and are executable or not like any others, a stray write really damages a heap,
// and HeapValidate, HeapFree and HeapWalk really find it. On the Go side there is only what Windows keeps outside: the
// table of heaps, their locks, and where the table of movable handles is.
//
// # Terms
//
//	NT                             here
//	HEAP, HEAP_SEGMENT             the headers in layout.go; object is what is outside
//	HEAP_ENTRY                     entry: eight bytes, exclusive-or with the heap's key
//	HEAP_UCR_DESCRIPTOR            ucr, inside the block that ends a committed run
//	HEAP_VIRTUAL_ALLOC_ENTRY       largeBlock
//	_LFH_HEAP, HEAP_USERDATA_HEADER the front end's table, subsegment
//	DPH_HEAP_BLOCK                 largeBlock with page set
//	RtlInitializeHandleTable       handleTable
//
// # A block
//
// Blocks are multiples of a unit, two pointers. A header is the eight bytes before the data; on a 64-bit machine the
// eight before those are the previous block's, so a block of n units has 16n-8 bytes for data (8n-8 on a 32-bit one).
//
//	64-bit  ──┬────────────────┬────────────────┬──────────────────────── ─ ─ ─ ┬────────┬────────────────┬──
//	          │ previous' data │ header ^ key   │ data, tail fill, slack        │  user  │ header ^ key   │
//	        ──┴────────────────┴────────────────┴──────────────────────── ─ ─ ─ ┴─ value ┴────────────────┴──
//	          at               at+8             at+16 = the address                       at+16n+8
//
//	header    Size 16 bits, in units │ Flags 8 │ Checksum 8 │ PreviousSize 16 │ SegmentOffset 8 │ UnusedBytes 8
//
// The exclusive or of a header's eight bytes is zero, so every change of one byte of it shows; a word of zeros is no header,
// and a header that no longer begins a block is overwritten with one. Besides its sum, a header must agree with both its
// neighbours' before anything is done with the block. The data of a free block begins with its links in a free list. The
// user value is there in blocks of movable memory: their handle.
//
// # A segment
//
//	base                first                                                                                      end
//	├── header ─────────┼─ block ┬ block ┬ free ┬ UCR ┬ ─ uncommitted ─ ─ ┬ block ┬ ... ┬ UCR ┬ ─ uncommitted ─ ─ ─ ┤
//	│ segment 0: HEAP   │        │       │      │  └──┼── address, size   │       │     │     │                     │
//
// Every committed run ends in a block that describes the uncommitted range behind it. Segment 0 is what HeapCreate
// reserved; further ones are reserved as needed, each twice as large as the last, from 1 MiB to 0xFD0000 bytes, and
// released when they are empty. Free blocks coalesce with their neighbours at once; a free run of 128 KiB gives all but
// 32 KiB of its pages back.
//
// A block above 0xFE00 units is a reservation of its own with a header like
//
//	base ├─ link ─┬─ pages committed, reserved ─┬─ user value ─┬─ seal ─┬─ header ─┼─ data ...
//
// and so is every block of the page heap, whose data ends at a page that is never committed, and whose pages are
// decommitted when it is freed while 32 further blocks are freed. Each takes at least 64 KiB of addresses.
//
// # The front end
//
// From its eighteenth allocation on, a size class of up to 16 KiB is served by the low-fragmentation heap: from subsegments,
// which are back-end blocks cut into equal ones with a bitmap. A block is taken at random. Heaps that are fixed, not
// serialised or being debugged have none. Windows counts outstanding allocations and, more slowly, all; here all count
// alike, so a program that allocates and frees in turn gets its front end sooner.
//
// # Damage
//
// Nothing read from the space is trusted: sums, seals (hashes over what seldom changes, with the key) and the pointer
// back of every link are checked before use, walks through segments only go upwards, walks through lists can only end at
// their heads, and each call may read no more than the heap's size explains. What does not fit is an Exception with
// STATUS_HEAP_CORRUPTION, at which a process that has set HeapEnableTerminationOnCorruption is to end. One changed byte
// of a block's header never goes unnoticed; several pass its sum once in 256 times and then have the neighbours to pass.
// Damage to the data of blocks is the program's own affair.
//
// # Locks, in order
//
//	section of a heap      HeapLock and every serialised call; belongs to a Thread, nests, waits until its context ends
//	  handleTable.mu       Global and Local calls, which hold the default heap's section
//	    object.mu          every call on a heap, so that unserialised use harms nobody but the program
//	      Space's own
//	Heaps.mu               the table of heaps; a leaf
//
// A call that the front end serves takes object.mu alone: as on Windows, a HeapLock does not keep it waiting. No lock of
// one heap is held while one of another is taken.
package heap
