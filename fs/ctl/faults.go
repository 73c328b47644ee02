package ctl

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"syscall"
	"time"
)

// FaultRecord is one request of the host for pages of a file, as a recording has it.
type FaultRecord struct {
	Off        int64
	Len        uint32
	Soft, Hard uint16 // of its pages, those that came back from a list and from a store
	Pid        uint32 // thread
	At         time.Duration
}

// FaultLog is the recording of a file's faults; its methods may be called while it goes on.
type FaultLog interface {
	// Each yields what was recorded, in order.
	Each() iter.Seq[FaultRecord]
	// Missed is how many faults came when it was full.
	Missed() uint64
}

// The default and the largest length of a recording.
const (
	usualFaults = 16 << 10
	mostFaults  = 1 << 20
)

// faultVerbs are the commands that record faults.
func faultVerbs() []Verb[*Target] {
	return []Verb[*Target]{
		{Words: "faults start", Count: usualFaults, Most: mostFaults, Run: startFaults,
			Help: "record the faults from now on, N at most; the last recording is forgotten. See the file faults"},
		{Words: "faults stop", Run: stopFaults, Help: "end the recording; what was recorded stays"},
		{Words: "faults forget", Run: forgetFaults, Help: "end the recording and give its memory back"},
	}
}

func startFaults(t *Target, a Args) ([]Tally, error) {
	return t.each(nil, func(f File, _ []Tally) error { return f.RecordFaults(a.Number) })
}

func stopFaults(t *Target, _ Args) ([]Tally, error) {
	return t.each([]Tally{{Name: "recorded"}}, func(f File, n []Tally) error {
		n[0].N += f.StopFaults()
		return nil
	})
}

func forgetFaults(t *Target, _ Args) ([]Tally, error) {
	return t.each(nil, func(f File, _ []Tally) error { f.ForgetFaults(); return nil })
}

// faultsHead begins the header line of a list of faults.
const faultsHead = "Offset"

// faultList is the recorded faults in order. Its first two columns are what Replay takes.
func faultList(f *RegularFile) *Doc {
	d := new(Doc)
	log := f.FaultLog()
	d.Table("faults", []Column{
		{Head: faultsHead, Key: "offset", Width: 14},
		{Head: "Length", Key: "length", Width: 8},
		{Head: "Kind", Key: "kind", Width: 5},
		{Head: "Soft", Key: "soft_pages", Width: 5},
		{Head: "Hard", Key: "hard_pages", Width: 5},
		{Head: "Usec", Key: "usec", Width: 12},
		{Head: "Tid", Key: "tid", Width: 7},
	}, func(yield func([]Value) bool) {
		if log == nil {
			return
		}
		row := make([]Value, 7)
		for r := range log.Each() {
			kind := "valid" // or a hole
			switch {
			case r.Hard > 0:
				kind = "hard"
			case r.Soft > 0:
				kind = "soft"
			}
			row[0], row[1], row[2] = Count(uint64(r.Off)), Count(uint64(r.Len)), Word(kind)
			row[3], row[4] = Count(uint64(r.Soft)), Count(uint64(r.Hard))
			row[5], row[6] = Count(uint64(r.At.Microseconds())), Count(uint64(r.Pid))
			if !yield(row) {
				return
			}
		}
	})
	var missed uint64
	if log != nil {
		missed = log.Missed()
	}
	d.Field("", "missed", Count(missed))
	if missed > 0 {
		d.Lines("", fmt.Sprintf("# full: %d more faults were not recorded", missed))
	}
	return d
}

// Replay is a list of faults being written to a ctl, in pieces that end anywhere. The zero value is none.
type Replay struct{ rest []byte }

// maxReplayLine bounds what is kept of a line that has not ended.
const maxReplayLine = 1 << 10

// Takes says whether the input is a piece of a list of faults, and not commands: it goes on with one, or begins with a
// number or the list's header.
func (r *Replay) Takes(input []byte) bool {
	if len(r.rest) > 0 {
		return true
	}
	for line := range bytes.Lines(input) {
		if line = bytes.TrimLeft(line, " \t\r\n"); len(line) > 0 && line[0] != '#' {
			return bytes.HasPrefix(line, []byte(faultsHead)) || '0' <= line[0] && line[0] <= '9'
		}
	}
	return false
}

// Write prefetches what a piece of a list names, and answers as Execute does. With last the line that has not ended, if
// there is one, ends here. If a line cannot be understood, nothing is done.
func (r *Replay) Write(t *Target, input []byte, last bool, env Env) (reply []byte, errno syscall.Errno) {
	input = append(r.rest, input...)
	r.rest = nil
	if end := bytes.LastIndexByte(input, '\n') + 1; !last {
		r.rest = bytes.Clone(input[end:])
		input = input[:end]
	}
	if len(r.rest) > maxReplayLine {
		r.rest = nil
		return answerError(nil, invalid("a line of over %d bytes is no fault", maxReplayLine), nil, env)
	}
	ranges, err := parseFaults(input)
	if err != nil {
		r.rest = nil
		return answerError(nil, err, nil, env)
	}
	if len(ranges) == 0 {
		return nil, 0
	}
	sum := []Tally{{Name: "prefetched"}}
	for batch := range slices.Chunk(ranges, replayBatch) {
		for _, a := range merged(batch) {
			n, err := prefetchFiles(t, a)
			sum[0].N += n[0].N
			if err != nil {
				return answerError(nil, err, sum, env)
			}
		}
	}
	return append(appendTally([]byte("OK"), sum), '\n'), 0
}

// replayBatch is how many faults are brought into the order of the file before they are prefetched. More would bring in
// last what was touched first.
const replayBatch = 1024

// merged sorts ranges and joins those that touch.
func merged(ranges []Args) (joined []Args) {
	slices.SortFunc(ranges, func(a, b Args) int { return cmp.Compare(a.Off, b.Off) })
	for _, a := range ranges {
		if n := len(joined); n > 0 && a.Off <= joined[n-1].Off+joined[n-1].Len {
			joined[n-1].Len = max(joined[n-1].Len, a.Off+a.Len-joined[n-1].Off)
			continue
		}
		joined = append(joined, a)
	}
	return joined
}

// CountFaults is how many faults a list names, which a ctl would replay; an error if it would refuse the list.
func CountFaults(list []byte) (int, error) {
	ranges, err := parseFaults(list)
	return len(ranges), err
}

// parseFaults reads lines of which the first two words are offset and length.
func parseFaults(input []byte) (ranges []Args, err error) {
	for line := range strings.Lines(string(input)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' || words[0] == faultsHead {
			continue
		}
		if len(words) < 2 {
			return nil, invalid("%s is no fault: want an offset and a length, nothing was done", quote(words[0]))
		}
		off, err := parseSize(words[0])
		n, err2 := parseSize(words[1])
		if err != nil || err2 != nil || n > math.MaxInt64-off {
			return nil, invalid("%s is no fault: want an offset and a length in bytes, nothing was done",
				quote(words[0]+" "+words[1]))
		}
		ranges = append(ranges, Args{Off: off, Len: n})
	}
	return ranges, nil
}
