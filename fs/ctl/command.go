package ctl

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"memfs/mm"
)

// Bounds of one write. More is refused whole, so that a ctl file fed with noise costs nothing.
const (
	MaxWrite    = 64 << 10 // bytes
	MaxCommands = 100      // lines that are not empty
)

// Tally is one figure of an OK answer: name=n.
type Tally struct {
	Name string
	N    uint64
}

// Args is what a command was given behind its words.
type Args struct {
	Off, Len int64 // byte range; Len −1, when none was given, is to the end of the file
	Size     Size
	Number   int
	Text     string
}

// Size is a number of bytes, or if Percent is not zero, that much of all RAM.
type Size struct {
	Bytes   uint64
	Percent float64
}

// of is the size in bytes when there is so much RAM: a percentage comes to whole MiB, as with memfs mount.
func (s Size) of(ram uint64) uint64 {
	if s.Percent == 0 {
		return s.Bytes
	}
	return uint64(s.Percent/100*float64(ram)) &^ (1<<20 - 1)
}

// Verb is one row of a command table. T is what the table's commands steer.
type Verb[T any] struct {
	Words    string // what is written: one word, or two
	Range    bool   // takes [OFF [LEN]]
	Size     bool   // takes SIZE
	Count    int    // takes a number from 1 to Most, which is this if none is given; 0 is none
	Most     int
	Digit    int    // takes a number from 0 on, below this; 0 is none
	Text     string // takes the rest of the line; what help calls it
	Trusted  bool   // for those alone in whose name the daemon runs
	Help     string // one line
	Launders bool   // has the host kernel write back or unmap: passes the gate
	// Run does it and says how many pages it moved, also when it fails half way.
	Run func(t T, r Args) ([]Tally, error)
}

// ManagerVerbs are the commands of .proc/ctl. The empty … ones are RAMMap's.
var ManagerVerbs = append([]Verb[*Mount]{
	{Words: "trim", Launders: true, Run: trimMount,
		Help: "unmap every view in the host, then write the modified pages: memory holds clean copies only"},
	{Words: "flush", Run: flushMount, Help: "write the modified pages to their page files"},
	{Words: "empty workingsets", Launders: true, Run: emptyWorkingSets,
		Help: "unmap every view in the host, and take all pages from processes; they go to the modified and standby lists"},
	{Words: "empty systemcache", Launders: true, Run: emptySystemCache,
		Help: "the same for the system cache's working set alone"},
	{Words: "empty modified", Run: flushMount, Help: "write the modified pages; they go to the standby list"},
	{Words: "empty standby", Run: emptyStandby, Help: "free the pages of all standby lists"},
	{Words: "empty standby0", Run: emptyStandby0, Help: "free the standby pages of priority 0"},
	{Words: "empty all", Launders: true, Run: emptyAll, Help: "workingsets, then modified, then standby"},
	{Words: "combine", Run: combine,
		Help: "find pages with the same bytes, of files and of processes, and have them share one frame until one of them is written"},
	{Words: "systemcache", Text: "MIN MAX [hard|soft]", Launders: true, Run: setSystemCache,
		Help: "bound the system cache's working set, as SetSystemFileCacheSize; soft holds while frames are short; 0 is the usual"},
	{Words: "zero", Run: zeroFree, Help: "zero the free pages now"},
	{Words: "memory", Size: true, Launders: true, Run: setMemory,
		Help: "change the whole budget, as if mounted with --memory SIZE: bytes, or a percentage of RAM as 25%"},
	{Words: "size", Size: true, Run: setSize,
		Help: "change the most that files may hold, as tmpfs's size=; 0 or default is what the commit limit allows"},
	{Words: "min", Size: true, Run: setMin,
		Help: "change how much of the frames is guaranteed, as --min SIZE: locked in the host's memory; 0 or default is nothing"},
	{Words: "check", Run: checkMount, Help: "prove the manager's invariants; .proc/check has the findings"},
}, pageFileVerbs()...)

// FileVerbs are the commands of a file's or directory's ctl.
var FileVerbs = append([]Verb[*Target]{
	{Words: "trim", Launders: true, Run: trimFiles,
		Help: "unmap the file's views in the host, then write its modified pages"},
	{Words: "flush", Launders: true, Run: flushFiles,
		Help: "have the host send what programs wrote, and write the file's modified pages"},
	{Words: "prefetch", Range: true, Run: prefetchFiles,
		Help: "read pages back from their page files: LEN bytes from OFF on, or to the end of the file"},
	{Words: "discard", Range: true, Launders: true, Run: discardFiles,
		Help: "make LEN bytes from OFF on zeros, or all to the end, and give their space back; the size stays"},
	{Words: "offer", Range: true, Launders: true, Run: offerFiles,
		Help: "let whole pages that are in memory be lost, first of all, when frames are wanted; they are zeros then"},
	{Words: "reclaim", Range: true, Run: reclaimFiles, Help: "undo offer, and say how many pages were lost"},
}, append(faultVerbs(), ruleVerbs()...)...)

func trimMount(m *Mount, _ Args) ([]Tally, error) {
	trimmed, err := m.TrimAll()
	written, err2 := m.FlushModified()
	return []Tally{{"trimmed", trimmed}, {"written", written}}, both(err, err2)
}

func flushMount(m *Mount, _ Args) ([]Tally, error) {
	written, err := m.FlushModified()
	return []Tally{{"written", written}}, err
}

func emptyWorkingSets(m *Mount, _ Args) ([]Tally, error) {
	trimmed := m.EmptySpaces()
	views, err := m.TrimAll()
	return []Tally{{"trimmed", trimmed + views}}, err
}

func emptySystemCache(m *Mount, _ Args) ([]Tally, error) {
	trimmed, err := m.TrimAll()
	return []Tally{{"trimmed", trimmed}}, err
}

func emptyStandby(m *Mount, _ Args) ([]Tally, error) {
	return []Tally{{"freed", m.EmptyStandby()}}, nil
}

func emptyStandby0(m *Mount, _ Args) ([]Tally, error) {
	return []Tally{{"freed", m.EmptyStandby0()}}, nil
}

func emptyAll(m *Mount, r Args) ([]Tally, error) {
	processes := m.EmptySpaces()
	tally, err := trimMount(m, r)
	tally[0].N += processes
	return append(tally, Tally{"freed", m.EmptyStandby()}), err
}

func zeroFree(m *Mount, _ Args) ([]Tally, error) {
	return []Tally{{"zeroed", m.ZeroFree()}}, nil
}

func setMemory(m *Mount, a Args) ([]Tally, error) {
	r, err := m.SetMemory(a.Size.of(m.Snapshot().MaxMemory))
	moved := []Tally{{"added", r.Added}, {"retired", r.Retired}, {"trimmed", r.Trimmed}, {"written", r.Written}}
	if err != nil {
		return moved, err
	}
	return append([]Tally{{"memory", r.Budget.Memory}}, moved...), nil
}

func setSize(m *Mount, a Args) ([]Tally, error) {
	if err := m.SetSize(a.Size.of(m.Snapshot().MaxMemory)); err != nil {
		return nil, err
	}
	s := m.Snapshot()
	return []Tally{{"size", s.Budget.Size}, {"used", s.FileCommit * mm.PageSize}}, nil
}

func setMin(m *Mount, a Args) ([]Tally, error) {
	bytes := a.Size.of(m.Snapshot().MaxMemory)
	locked, unlocked, err := m.SetGuarantee(bytes)
	if err != nil {
		return nil, err
	}
	return []Tally{{"min", bytes}, {"locked", locked}, {"unlocked", unlocked}}, nil
}

func checkMount(m *Mount, _ Args) ([]Tally, error) {
	found := m.Check()
	if len(found) == 0 {
		return []Tally{{"found", 0}}, nil
	}
	// EUCLEAN is what file systems answer when they find themselves inconsistent.
	return nil, &refusal{syscall.EUCLEAN, fmt.Sprintf("%d invariants do not hold, the first: %s; read .proc/check",
		len(found), oneLine(found[0]))}
}

// Target is what a ctl of .proc/files steers: one file, or the files below a directory.
type Target struct {
	// Files calls f for each file once and says how many it left out, because the writer may not steer them.
	Files func(f func(File)) (skipped uint64)
	// Folders calls f for the directory itself and each below it; nil for a file.
	Folders func(f func(Steered))
	// Dir says that the answer tells how many files there were, and that one file's failure does not end the command.
	Dir bool
}

// each runs f on every file, which adds the pages that it moved to the tally.
func (t *Target) each(tally []Tally, f func(File, []Tally) error) ([]Tally, error) {
	var files, failed uint64
	var first error
	skipped := t.Files(func(file File) {
		err := f(file, tally)
		if t.Dir && errors.Is(err, mm.StatusDeleted) { // unlinked since the directory was read
			return
		}
		files++
		if err != nil {
			failed++
			if first == nil {
				first = err
			}
		}
	})
	if !t.Dir {
		return tally, first
	}
	if first != nil {
		first = fmt.Errorf("%d of %d files: %w", failed, files, first)
	}
	return append(tally, Tally{"files", files}, Tally{"skipped", skipped}), first
}

func trimFiles(t *Target, _ Args) ([]Tally, error) {
	return t.each([]Tally{{Name: "trimmed"}, {Name: "written"}}, func(f File, moved []Tally) error {
		trimmed, err := f.Trim()
		written, err2 := f.Flush()
		moved[0].N += trimmed
		moved[1].N += written
		return both(err, err2)
	})
}

func flushFiles(t *Target, _ Args) ([]Tally, error) {
	return t.each([]Tally{{Name: "written"}}, func(f File, moved []Tally) error {
		written, err := f.Flush()
		moved[0].N += written
		return err
	})
}

func prefetchFiles(t *Target, r Args) ([]Tally, error) {
	return t.each([]Tally{{Name: "prefetched"}}, func(f File, moved []Tally) error {
		n := int64(min(f.Info().Size, math.MaxInt64)) - r.Off
		if r.Len >= 0 {
			n = min(n, r.Len)
		}
		if n <= 0 {
			return nil
		}
		prefetched, err := f.Prefetch(r.Off, n)
		moved[0].N += prefetched
		return err
	})
}

// refusal is an error of the language itself, which knows its errno.
type refusal struct {
	errno syscall.Errno
	text  string
}

func (r *refusal) Error() string { return r.text }

func invalid(format string, args ...any) *refusal {
	return &refusal{syscall.EINVAL, fmt.Sprintf(format, args...)}
}

// parse finds the row of a command's words, and reads what follows them.
func parse[T any](verbs []Verb[T], words []string) (*Verb[T], Args, error) {
	whole := Args{Len: -1}
	var second []string // what may follow the first word
	for i := range verbs {
		v := &verbs[i]
		first, rest, two := strings.Cut(v.Words, " ")
		if words[0] != first {
			continue
		}
		args := words[1:]
		if two {
			second = append(second, rest)
			if len(args) == 0 || args[0] != rest {
				continue
			}
			args = args[1:]
		}
		if v.Size {
			size, err := parseSizeArg(v.Words, args)
			return v, Args{Len: -1, Size: size}, err
		}
		if v.Text != "" {
			if len(args) == 0 {
				return v, whole, invalid("%s wants %s", v.Words, v.Text)
			}
			return v, Args{Len: -1, Text: strings.Join(args, " ")}, nil
		}
		if v.Count > 0 {
			n, err := parseCount(v.Words, args, v.Count, v.Most)
			return v, Args{Len: -1, Number: n}, err
		}
		if v.Digit > 0 {
			n, err := parseDigit(v.Words, args, v.Digit)
			return v, Args{Len: -1, Number: n}, err
		}
		if !v.Range {
			if len(args) > 0 {
				return nil, whole, invalid("%s takes no arguments, but has %s", v.Words, quote(args[0]))
			}
			return v, whole, nil
		}
		r, err := parseRange(v.Words, args)
		return v, r, err
	}
	switch {
	case second == nil:
		return nil, whole, invalid("unknown command %s: write help for the list", quote(words[0]))
	case len(words) == 1:
		return nil, whole, invalid("%s wants one of %s", words[0], strings.Join(second, ", "))
	}
	return nil, whole, invalid("%s %s: want one of %s", words[0], quote(words[1]), strings.Join(second, ", "))
}

func parseRange(verb string, args []string) (Args, error) {
	r := Args{Len: -1}
	if len(args) > 2 {
		return r, invalid("%s takes OFF and LEN at most, but has %s", verb, quote(args[2]))
	}
	for i, name := range []string{"OFF", "LEN"}[:len(args)] {
		n, err := parseSize(args[i])
		if err != nil {
			return r, invalid("%s: %s %s is not a number of bytes below 8 EiB: write it as 4096, 0x1000 or 4K", verb,
				name, quote(args[i]))
		}
		if i == 0 {
			r.Off = n
		} else {
			r.Len = n
		}
	}
	if r.Len > math.MaxInt64-r.Off {
		return r, invalid("%s: OFF and LEN together reach 8 EiB", verb)
	}
	return r, nil
}

// parseDigit reads the one argument of a command that takes a number below limit.
func parseDigit(verb string, args []string, limit int) (int, error) {
	if len(args) == 1 {
		if n, err := strconv.Atoi(args[0]); err == nil && n >= 0 && n < limit {
			return n, nil
		}
	}
	if len(args) == 0 {
		return 0, invalid("%s wants a number from 0 to %d", verb, limit-1)
	}
	return 0, invalid("%s takes one number from 0 to %d, not %s", verb, limit-1, quote(strings.Join(args, " ")))
}

// parseCount reads the one argument of a command that takes a number up to most; usual if there is none.
func parseCount(verb string, args []string, usual, most int) (int, error) {
	if len(args) == 0 {
		return usual, nil
	}
	if n, err := strconv.Atoi(args[0]); len(args) == 1 && err == nil && n > 0 && n <= most {
		return n, nil
	}
	return 0, invalid("%s takes one number from 1 to %d, not %s", verb, most, quote(strings.Join(args, " ")))
}

// parseSizeArg reads the one argument of a command that takes a size.
func parseSizeArg(verb string, args []string) (Size, error) {
	switch {
	case len(args) == 0:
		return Size{}, invalid("%s wants a SIZE: bytes as 256M, or a percentage of RAM as 25%%", verb)
	case len(args) > 1:
		return Size{}, invalid("%s takes one SIZE, but has %s as well", verb, quote(args[1]))
	case args[0] == "default":
		return Size{}, nil
	}
	if number, ok := strings.CutSuffix(args[0], "%"); ok {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || !(percent > 0 && percent <= 100) {
			return Size{}, invalid("%s: %s is not a percentage above 0%% and up to 100%%", verb, quote(args[0]))
		}
		return Size{Percent: percent}, nil
	}
	n, err := parseSize(args[0])
	if err != nil {
		return Size{}, invalid("%s: %s is not a number of bytes below 8 EiB nor a percentage: write it as 256M, 65536 or 25%%",
			verb, quote(args[0]))
	}
	return Size{Bytes: uint64(n)}, nil
}

// ParseSize reads a number of bytes as commands take it: decimal, with K M G T P E behind it for the powers of 1024, or 0x.
func ParseSize(s string) (int64, error) { return parseSize(s) }

// parseSize reads a number of bytes: decimal, with one of the suffixes K M G T P E for the powers of 1024, or 0x and
// hexadecimal digits.
func parseSize(s string) (int64, error) {
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		n, err := strconv.ParseUint(hex, 16, 63)
		return int64(n), err
	}
	shift := 0
	if len(s) > 1 {
		if i := strings.IndexByte("KMGTPE", s[len(s)-1]&^0x20); i >= 0 {
			shift, s = 10*(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err == nil && n > math.MaxInt64>>shift {
		err = strconv.ErrRange
	}
	return int64(n << shift), err
}

// quote shows a word of the input: on one line, and not all of it if it is long.
func quote(word string) string {
	const most = 32
	if utf8.RuneCountInString(word) > most {
		return fmt.Sprintf("%.*q…", most, word)
	}
	return strconv.Quote(word)
}

// Env is what the commands of one mount share.
type Env struct {
	Gate  Gate                      // for commands that launder
	Errno func(error) syscall.Errno // of the errors of mm and mapping
	// Untrusted says that the commands are not of root or the user that the daemon runs as.
	Untrusted bool
}

// Execute runs the commands of one write, in order, and returns their answers, a line each. When the last one is an
// ERR, errno is its errno, else 0. An input that is refused whole has one ERR line, and no command of it was run.
func Execute[T any](verbs []Verb[T], t T, input []byte, env Env) (reply []byte, errno syscall.Errno) {
	lines, err := split(input)
	if err != nil {
		return answerError(nil, err, nil, env)
	}
	for words := range lines {
		if words[0] == "help" && len(words) == 1 {
			text := Help(verbs)
			reply = fmt.Appendf(reply, "OK lines=%d\n%s", strings.Count(text, "\n"), text)
			errno = 0
			continue
		}
		reply, errno = command(verbs, t, words, reply, env)
	}
	return reply, errno
}

func command[T any](verbs []Verb[T], t T, words []string, reply []byte, env Env) ([]byte, syscall.Errno) {
	if words[0] == "help" {
		return answerError(reply, invalid("help takes no arguments, but has %s", quote(words[1])), nil, env)
	}
	v, r, err := parse(verbs, words)
	if err != nil {
		return answerError(reply, err, nil, env)
	}
	if v.Trusted && env.Untrusted {
		return answerError(reply, &refusal{syscall.EPERM,
			v.Words + ": for root and the user that memfs runs as alone, since it does this in their name"}, nil, env)
	}
	if v.Launders {
		if !env.Gate.TryEnter() {
			return answerError(reply, &refusal{syscall.EBUSY,
				"too many commands are waiting for the host to write back: try again"}, nil, env)
		}
		defer env.Gate.Leave()
	}
	tally, err := v.Run(t, r)
	if err != nil {
		return answerError(reply, err, tally, env)
	}
	reply = append(reply, "OK"...)
	return append(appendTally(reply, tally), '\n'), 0
}

func appendTally(b []byte, tally []Tally) []byte {
	for _, t := range tally {
		b = fmt.Appendf(b, " %s=%d", t.Name, t.N)
	}
	return b
}

// answerError appends an ERR line. What was done before the failure is said behind it.
func answerError(reply []byte, err error, tally []Tally, env Env) ([]byte, syscall.Errno) {
	errno := syscall.EIO
	var r *refusal
	switch {
	case errors.As(err, &r):
		errno = r.errno
	case env.Errno != nil:
		if e := env.Errno(err); e != 0 {
			errno = e
		}
	}
	reply = fmt.Appendf(reply, "ERR %s %s", errnoName(errno), oneLine(err))
	if slices.ContainsFunc(tally, func(t Tally) bool { return t.N != 0 }) {
		reply = appendTally(append(reply, ", after"...), tally)
	}
	return append(reply, '\n'), errno
}

// errnoName is the name that errno(3) gives an error number. Two have another name besides, which is not meant here.
func errnoName(errno syscall.Errno) string {
	switch errno {
	case syscall.EUCLEAN:
		return "EUCLEAN"
	case syscall.EAGAIN:
		return "EAGAIN"
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return strconv.Itoa(int(errno))
}

// both is the error of two steps: one of them, if they failed in the same way.
func both(a, b error) error {
	if a != nil && b != nil && a.Error() == b.Error() {
		return a
	}
	return errors.Join(a, b)
}

// split yields the words of each command line of a write, or refuses the write.
func split(input []byte) (iter.Seq[[]string], error) {
	if len(input) > MaxWrite {
		return nil, &refusal{syscall.E2BIG, fmt.Sprintf("a write of %d bytes: at most %d at once, nothing was done",
			len(input), MaxWrite)}
	}
	if i := bytes.IndexFunc(input, func(r rune) bool {
		return r == utf8.RuneError || r == 0x7f || r < ' ' && r != '\n' && r != '\t' && r != '\r'
	}); i >= 0 {
		return nil, invalid("byte 0x%02x at %d is not text, nothing was done", input[i], i)
	}
	var commands [][]string
	for line := range strings.Lines(string(input)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		if len(commands) == MaxCommands {
			return nil, &refusal{syscall.E2BIG, fmt.Sprintf("at most %d commands at once, nothing was done", MaxCommands)}
		}
		commands = append(commands, words)
	}
	return slices.Values(commands), nil
}

// Help is the list of a table's commands, a line each.
func Help[T any](verbs []Verb[T]) string {
	var b strings.Builder
	for _, v := range verbs {
		usage := v.Words
		if v.Range {
			usage += " [OFF [LEN]]"
		}
		if v.Size {
			usage += " SIZE"
		}
		if v.Digit > 0 {
			usage += " N"
		}
		if v.Text != "" {
			usage += " " + v.Text
		}
		if v.Count > 0 {
			usage += " [N]"
		}
		fmt.Fprintf(&b, "%-20s  %s\n", usage, v.Help)
	}
	fmt.Fprintf(&b, "%-20s  %s\n", "help", "this list")
	return b.String()
}

// Gate lets as many wait at the same time as its channel has room for tokens. A nil Gate lets everybody in.
type Gate chan struct{}

// TryEnter takes a place if one is free; whoever got one gives it back with Leave. It never waits.
func (g Gate) TryEnter() bool {
	if g == nil {
		return true
	}
	select {
	case g <- struct{}{}:
		return true
	default:
		return false
	}
}

// Leave gives a place back.
func (g Gate) Leave() {
	if g != nil {
		<-g
	}
}
