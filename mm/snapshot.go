package mm

// Snapshot is one consistent copy of the manager's figures, taken under the PFN lock by copying counters; it never
// walks the PFN database. Control files, the command and metrics render it; nothing else reads the manager's insides.
// Page figures are in pages of PageSize bytes.
type Snapshot struct {
	Budget    Budget // what the memory is divided into
	MaxMemory uint64 // bytes; what it may grow to
	Resource  Resource

	Guaranteed      uint64    // frames that the host has given for good
	Frames          uint64    // all frames of the arena but the retired ones
	Zeroed          uint64    // pages on each list
	Free            uint64    //
	Standby         [8]uint64 // by priority
	Modified        uint64
	ModifiedNoWrite uint64
	Transition      uint64 // under I/O
	Active          uint64 // in a working set, RecordFrames included
	Bad             uint64
	Retired         uint64 // frames out of use while the memory shrinks; their memory goes back to the host
	RecordFrames    uint64 // Active frames whose memory the manager's own records took over (NT's nonpaged pool)

	HostPages uint64 // pages that the host kernel may hold of ours (the system cache's working set)
	HostLimit uint64 // above this the trimmer unmaps views
	Views     uint64 // mapped 256 KiB views

	Commit      uint64 // charged
	FileCommit  uint64 // of that for files, which Budget.Size bounds; the rest is for records
	CommitPeak  uint64
	CommitLimit uint64 // what can be charged when every page file has grown to its maximum

	RecordBytes uint64 // prototype PTEs, leaves, inodes, names, slots
	Sections    uint64
	Spaces      uint64 // private memories of processes
	Locked      uint64 // pages locked in working sets

	PageFiles  []PageFileInfo
	Compressed CompressedInfo
	// Combined pages, and the pages that share them: their difference is what combining saves.
	Combined, CombinedSharers uint64
	Some, Full                PressureInfo // time that requests lost for want of memory
	Counters                  Counters
}

// PageFileInfo describes one page file. Sizes in pages.
type PageFileInfo struct {
	Number   int
	Name     string // path it was made at (it is unlinked at once)
	Priority int    // those of the highest are written first
	Size     uint64 // what the disk has promised or holds
	Max      uint64
	Min      uint64
	Used     uint64
	Peak     uint64
	Wiping   uint64 // freed, and still to be overwritten
	Removing bool   // its pages are on their way to other places
}

// CompressedInfo describes the pages that are compressed in memory; zero if that is not done.
type CompressedInfo struct {
	Pages    uint64
	Same     uint64 // of which one word over and over: they cost nothing
	Bytes    uint64 // that the others are compressed to
	Memory   uint64 // bytes that all of it takes
	Limit    uint64 // bytes that it may take
	Rejected uint64 // pages that did not compress, ever
}

// Counters only grow. The names carry Windows' meanings (Windows Internals 7 ch. 5, "Page faults").
type Counters struct {
	PageFaults       uint64 // all pages that had to be made valid
	DemandZeroFaults uint64 // first store to a page
	TransitionFaults uint64 // soft: from Standby, Modified or a page-out under way
	WriteCopies      uint64 // pages that a store made a copy of: a process's of a file's, or of what combined pages share
	HardFaults       uint64 // pages read back from their store on demand
	CollidedFaults   uint64 // waited for another fault's read of the same page
	HoleReads        uint64 // reads of never-written pages, served as zeros without a frame
	PagesReadAhead   uint64 // pages read back before anybody asked for them
	ReadAheadHits    uint64 // of those, pages that were touched later
	PageReads        uint64 // read operations on stores
	PagesInput       uint64 // pages read from stores
	PageWrites       uint64 // write operations on stores
	PagesOutput      uint64 // pages written to stores
	BouncedReads     uint64 // pages answered from the reply buffer because no frame was left
	DirectWrites     uint64 // pages written straight to slots because no frame was left
	ViewsMapped      uint64
	ViewsTrimmed     uint64
	PagesTrimmed     uint64    // pages that left the system cache's working set
	PagesFreed       uint64    // frames given back by truncate, punch, unlink
	Laundered        uint64    // write-backs asked of the host before an unmap
	Invalidations    uint64    // ranges unmapped in the host
	Repurposed       [8]uint64 // Standby pages taken for another use, by priority
	PagesStolen      uint64    // clean pages of the working set whose frames were taken, Standby having none
	PagesEmptied     uint64    // Standby pages that a command took
	PagesLimited     uint64    // Standby pages that left because their file had as many in memory as it may
	ZeroedPages      uint64    // by the zero-page thread
	PagesCompressed  uint64    // pages stored in compressed memory
	PagesLost        uint64    // offered pages whose frames were taken: zeros from then on
	PagesCombined    uint64    // pages that came to share a frame with others of the same bytes
	PagesMigrated    uint64    // pages moved on from there to a page file
	ChecksumErrors   uint64    // slots whose bytes were not what was written
	ReadErrors       uint64    // store reads that failed, in pages
	WriteErrors      uint64    // store writes that failed, in pages
	CommitRefusals   uint64    // charges refused
	RefusedWrites    uint64    // WRITEs of the host answered with no space
}

// PageInfo describes one page of a segment, for `pages` and `map`.
type PageInfo struct {
	Index    uint64 // page number in the section
	State    byte   // one of the State… letters
	Frame    int64  // frame number, or −1
	Priority uint8  // of its frame
	Dirty    bool   // its frame holds bytes that no store has
	PageFile int    // page file that holds a copy, or −1
	Slot     int64  // slot in it, or −1
	Host     bool   // the host kernel may hold a copy (mapped in a view)
	Sharers  uint32 // pages that share its bytes with it, itself among them; 0 if it is not combined
	Locked   bool   // locked in its process's working set
	Shared   bool   // of a process's page: it is a file's, mapped by a view
	Promised bool   // of such a page: space is committed for the process's own copy
	Shares   uint32 // of a file's page: how many processes have it in their working sets
	Why      string // what brought it where it is: a pfn.Event of its frame, or the pfn.Departure of a page without one
}

// The state letters of `map`, one a page.
const (
	StateZero       = '.' // never written
	StateCommitted  = 'z' // promised by fallocate, never written
	StateActive     = 'A'
	StateStandby    = 'S'
	StateModified   = 'M'
	StateNoWrite    = 'N' // modified, not to be written
	StateTransition = 'T' // under I/O
	StatePaged      = 'P' // in a page file only
	StateCompressed = 'C' // in compressed memory only
)
