// Package ctl is what the control tree (.proc) says and obeys: the documents that its files show, and the command words
// that its ctl files take. It knows neither FUSE nor nodes; package fs gives every row of the tables below a node.
//
// # The tree
//
// A control file is one row of a table: Top for .proc itself, PerFile for the folder of a regular file in .proc/files,
// PerDir for a directory, PerSpecial for what is neither. A row names the file, its permission, one line of help, and
// the function that builds its Doc. A Doc is defined once and renders as text and as JSON, so that NAME and NAME.json
// can never disagree: every row but ctl has such a twin.
//
// Text has three forms, all for people and for awk: pages of "Label: value unit" as /proc/meminfo, of "name value" as
// /proc/vmstat, and tables with a header line and one record a line. JSON objects begin with "v":1, their keys are
// snake_case and stable (new ones are appended, none is renamed), numbers are numbers and a key names its unit where a
// plain count would be ambiguous (…_bytes, …_pages).
//
// # The command language
//
// A ctl file takes words, one command a line; an empty line and one that begins with # say nothing. Each command is
// answered with one line:
//
//	OK trimmed=812 written=97
//	ERR EINVAL unknown command "trimm": write help for the list
//
// help alone answers with more: "OK lines=N" and N lines. A command is complete at its newline or at the end of the
// write. The lines of one write run in order, whatever becomes of those before. A write that is not text, or too long,
// is refused whole: one ERR line, nothing done. A write whose last answer is ERR fails with that errno, so that
// `echo … > ctl || …` works.
//
// # Waiting
//
// Commands that make the host kernel write data back or give memory up wait for requests of the host that are served at the same time.
// They pass a Gate first, which lets in at most so many at once and refuses the rest with EBUSY: waiting commands must
// never take all the requests there are. Long documents are packed two at a time, with no lock held. The one lock here is
// inside a Text: it is held for the unpacking of 64 KiB and nothing is called with it.
package ctl

import (
	"errors"
	"iter"
	"strings"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/process"
)

// Machine is what the manager's control files need; *mm.System satisfies it.
type Machine interface {
	Snapshot() mm.Snapshot
	Check() []error
	TrimAll() (uint64, error)
	FlushModified() (uint64, error)
	EmptyStandby() uint64
	EmptyStandby0() uint64
	ZeroFree() uint64
	SetMemory(bytes uint64) (mm.Resized, error)
	SetSize(bytes uint64) error
	SetGuarantee(bytes uint64) (locked, unlocked uint64, err error)
	EachFrame(f func(*mm.FrameInfo) bool)
	Combine() (mm.Combined, error)
	EmptySpaces() uint64
	SystemCache() (mm.CacheLimits, uint64)
	SetSystemCache(mm.CacheLimits) (uint64, error)
	AddPageFile(mm.PageFileConfig) (number int, err error)
	RemovePageFile(number int) (moved uint64, err error)
}

// Mount is a whole mount: what .proc describes and .proc/ctl steers. The functions may be nil.
type Mount struct {
	Machine
	Version string                    // of memfs
	Facts   func() [][2]string        // label and value lines of version: the kernel's features, how it was mounted
	Inodes  func() (used, max uint64) // of nr_inodes
	// OpenPageFile makes a page file, as --pagefile would.
	OpenPageFile func(spec string) (mm.PageFileConfig, error)
	// Inject has page files fail; it returns how often they did by the last words. "" ends it. nil: not on this mount.
	Inject     func(faults string) (before uint64, err error)
	Violations func() uint64 // executions that DEP has stopped
	// Processes lists the simulated processes by number.
	Processes func() []*Process
	// Owners lists who filled the mount.
	Owners func() []Owner
	// Resident is the daemon's memory in bytes.
	Resident func() uint64
	// Operations are the times of the host's requests, FaultTimes those of READs that faulted.
	Operations, FaultTimes func() []Timing
	// FileOf says which file a segment's host is.
	FileOf func(mm.Host) Place
}

// File is what the control files of a regular file need.
type File interface {
	Info() mapping.Info
	Blocks() uint64 // of 512 bytes, as in st_blocks
	// EachPage calls f for the existing pages of [first, first+n) in order, until f returns false.
	EachPage(first, n uint64, f func(mm.PageInfo) bool)
	Trim() (uint64, error)
	Flush() (uint64, error)
	Prefetch(off, n int64) (uint64, error)
	Discard(off, n int64) error                         // n < 0 is to the end
	Offer(off, n int64, priority uint8) (uint64, error) // the same
	Reclaim(off, n int64) mm.Offered
	Rule() mm.Rule
	Bound() (trimmed, evicted uint64, err error) // to the rule's working-set limit, at once
	Faults() mm.FaultCounts
	RecordFaults(most int) error // begins a recording
	StopFaults() uint64          // ends it, and says how much it has
	ForgetFaults()
	FaultLog() FaultLog // nil is none
	Steered
}

// Stat is what stat(2) says of an entry of .proc/files, as far as its info repeats it.
type Stat struct {
	Inode uint64
	Type  string // regular, directory, symlink, fifo, socket, block device, character device
	Links uint64
}

// RegularFile is what the control files of one regular file describe.
type RegularFile struct {
	Stat
	File
	Protection string              // a PAGE_ constant
	Area       process.ControlArea // what processes have made of it
}

// Directory is what the :info of a directory describes: the sums over everything below it.
type Directory struct {
	Stat
	Files       uint64 // regular files, each inode once
	Directories uint64 // below this one
	Others      uint64 // symlinks, fifos, sockets, devices
	Skipped     uint64 // directories and files left out, because the reader may not look into them
	Blocks      uint64 // of 512 bytes
	Sum         mapping.Info
	Rule        mm.Rule // of what is made in it
	Protection  string  // the same: a PAGE_ constant
}

// Entry is one row of a table of control files. T is what its documents describe.
type Entry[T any] struct {
	Name string
	Perm uint32 // permission bits at most; a file's own mode limits those of its controls further
	Help string // one line
	// Render builds the document; nil for a ctl, which is a stream of commands and answers.
	Render func(T) *Doc
	// Residency says that the document shows which pages are in memory. As with mincore(2), which tells it only to
	// who may write the file, since it betrays what others do with the file.
	Residency bool
	// Stream says that the document is as long as memory is large: it is rendered while it is read.
	Stream bool
}

var errClosed = errors.New("nobody reads any more")

// jsonSuffix makes the name of a control file's JSON twin.
const jsonSuffix = ".json"

// Lookup finds the row that name stands for in a table, and whether name is the row's JSON twin. −1 is not found.
func Lookup[T any](table []Entry[T], name string) (row int, json bool) {
	base, json := strings.CutSuffix(name, jsonSuffix)
	for i, e := range table {
		if e.Name == base && (!json || e.Render != nil) {
			return i, json
		}
	}
	return -1, false
}

// Names yields the names of a table's files with their JSON twins, in the order of the table.
func Names[T any](table []Entry[T]) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, e := range table {
			if !yield(e.Name) {
				return
			}
			if e.Render != nil && !yield(e.Name+jsonSuffix) {
				return
			}
		}
	}
}
