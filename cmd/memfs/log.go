package main

import (
	"fmt"
	"io"
	"log/syslog"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	logrussyslog "github.com/sirupsen/logrus/hooks/syslog"

	"memfs/mm"
)

// newLog makes the daemon's log: a file if one is named, else standard error in front, else syslog, which gets warnings
// and errors only. file is the log file, nil if there is none.
func newLog(o *mountOptions) (log *logrus.Logger, file *os.File, err error) {
	log = logrus.New()
	level, err := logrus.ParseLevel(o.logLevel)
	if err != nil {
		return nil, nil, err
	}
	log.SetLevel(level)
	if o.logFormat == "json" {
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(plainFormat{})
	}
	switch {
	case o.logFile != "":
		file, err = os.OpenFile(o.logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("log file %s: %s", o.logFile, reason(err))
		}
		log.SetOutput(file)
	case o.foreground:
		log.SetOutput(os.Stderr)
	default:
		log.SetOutput(io.Discard)
		if hook, err := logrussyslog.NewSyslogHook("", "", syslog.LOG_DAEMON|syslog.LOG_WARNING, "memfs"); err == nil {
			log.AddHook(warningsOnly{hook})
		}
	}
	return log, file, nil
}

// plainFormat writes lines for people: time, level, text. A stack trace stays readable.
type plainFormat struct{}

func (plainFormat) Format(e *logrus.Entry) ([]byte, error) {
	return fmt.Appendf(nil, "%s %-7s %s\n", e.Time.Format("2006-01-02 15:04:05.000"), e.Level, e.Message), nil
}

// warningsOnly keeps a hook from what only a log file should hold.
type warningsOnly struct{ logrus.Hook }

func (warningsOnly) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// listener logs the memory manager's events.
func listener(log *logrus.Logger) mm.Listener {
	checksum, failed := newLimiter(log), newLimiter(log)
	return mm.Listener{
		ChecksumError: func(file string, slot uint64) {
			checksum.warn("page file %s: slot %d is not what was written there: reading its page is an I/O error", file, slot)
		},
		StoreError: func(_, _ string, _ uint64, err error) {
			failed.warn("page file %v", err) // which names file, operation and slots
		},
	}
}

const (
	limiterBurst  = 10
	limiterPeriod = 10 * time.Second
)

// limiter keeps an event that comes a million times from filling the disk: so many lines a period, then a count.
type limiter struct {
	log *logrus.Logger

	mu sync.Mutex
	// +checklocks:mu
	since time.Time
	// +checklocks:mu
	lines int
	// +checklocks:mu
	dropped int
}

func newLimiter(log *logrus.Logger) *limiter { return &limiter{log: log} }

func (l *limiter) warn(format string, args ...any) {
	dropped, ok := l.take()
	if dropped > 0 {
		l.log.Warnf("%d more lines like the ones before were left out", dropped)
	}
	if ok {
		l.log.Warnf(format, args...)
	}
}

// take says whether a line may be written now, and how many were left out before the period began.
func (l *limiter) take() (dropped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) >= limiterPeriod {
		dropped = l.dropped
		l.since, l.lines, l.dropped = now, 0, 0
	}
	if l.lines == limiterBurst {
		l.dropped++
		return dropped, false
	}
	l.lines++
	return dropped, true
}
